#include <array>
#include <cstdint>

#include <onnxruntime_cxx_api.h>

#include "model.hpp"
#include "network.hpp"
#include "overflow.hpp"

namespace {

Ort::SessionOptions options() {
  Ort::SessionOptions found;
  // Where nothing overflows the entry only costs time.
  if (overflows()) found.AddConfigEntry(@EXACT@);
  return found;
}

class OnnxRuntime : public Network {
 public:
  explicit OnnxRuntime(const std::string& file)
      : environment_(ORT_LOGGING_LEVEL_ERROR, "classify"), session_(environment_, file.c_str(), options()) {}

  std::vector<float> run(const void* input, int images) override {
    const auto shape = model::input_shape(images);
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const std::size_t count = model::input_elements * images;
    auto* values = static_cast<model::Element*>(const_cast<void*>(input));
    const auto tensor = Ort::Value::CreateTensor<model::Element>(memory, values, count, shape.data(), shape.size());
    const char* inputs[] = {model::input};
    const char* outputs[] = {model::output};
    const auto made = session_.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);
    const float* logits = made[0].GetTensorData<float>();
    return {logits, logits + std::size_t(images) * model::classes};
  }

 private:
  Ort::Env environment_;
  Ort::Session session_;
};

}  // namespace

std::unique_ptr<Network> open_network(const std::string& folder) {
  return std::make_unique<OnnxRuntime>(folder + "/model.onnx");
}
