#include <openvino/openvino.hpp>

#include "model.hpp"
#include "network.hpp"

namespace {

class OpenVino : public Network {
 public:
  explicit OpenVino(const std::string& file)
      : compiled_(core_.compile_model(file, "CPU", ov::hint::inference_precision(ov::element::f32))),
        request_(compiled_.create_infer_request()) {}

  std::vector<float> run(const void* input, int images) override {
    const auto axes = model::input_shape(images);
    const ov::Shape shape(axes.begin(), axes.end());
    request_.set_tensor(model::input,
                        ov::Tensor(ov::element::from<model::Element>(), shape, const_cast<void*>(input)));
    request_.infer();
    const float* logits = request_.get_tensor(model::output).data<float>();
    return {logits, logits + std::size_t(images) * model::classes};
  }

 private:
  ov::Core core_;
  ov::CompiledModel compiled_;
  ov::InferRequest request_;
};

}  // namespace

std::unique_ptr<Network> open_network(const std::string& folder) {
  return std::make_unique<OpenVino>(folder + "/model.onnx");
}
