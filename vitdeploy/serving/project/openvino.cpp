#include <openvino/openvino.hpp>
#include <openvino/pass/constant_folding.hpp>
#include <openvino/pass/manager.hpp>

#include "model.hpp"
#include "network.hpp"
#include "overflow.hpp"

namespace {

ov::CompiledModel compile(ov::Core& core, const std::string& file) {
  const auto found = core.read_model(file);
  ov::AnyMap settings{ov::hint::inference_precision(ov::element::f32)};
  // INT8 in FP32, and its weights as floats: with integers OpenVINO 2026.4 forgets the stride of some convolutions then.
  if (overflows()) {
    settings[@EXACT@] = false;
    ov::pass::Manager manager;
    manager.register_pass<ov::pass::ConstantFolding>();
    manager.run_passes(found);
  }
  return core.compile_model(found, "CPU", settings);
}

class OpenVino : public Network {
 public:
  explicit OpenVino(const std::string& file)
      : compiled_(compile(core_, file)), request_(compiled_.create_infer_request()) {}

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
