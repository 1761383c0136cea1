// TensorRT 8.5 and newer; the engine is model.plan in the folder, see the README.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include "model.hpp"
#include "network.hpp"

namespace {

class Logger : public nvinfer1::ILogger {
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kERROR) std::fprintf(stderr, "TensorRT: %s\n", text);
  }
};

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Memory of the GPU, which grows when it has to.
class Memory {
 public:
  ~Memory() { cudaFree(data_); }
  void* of(std::size_t size) {
    if (size > size_) {
      check(cudaFree(data_));
      data_ = nullptr;
      check(cudaMalloc(&data_, size));
      size_ = size;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

class TensorRt : public Network {
 public:
  explicit TensorRt(const std::string& file) {
    std::ifstream stream(file, std::ios::binary);
    const std::vector<char> plan{std::istreambuf_iterator<char>(stream), {}};
    if (!stream || plan.empty()) throw std::runtime_error("cannot read the engine " + file);
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (engine_) context_.reset(engine_->createExecutionContext());
    if (!context_) throw std::runtime_error("TensorRT refuses the engine " + file);
    check(cudaStreamCreate(&stream_));
  }

  ~TensorRt() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  std::vector<float> run(const void* input, int images) override {
    const auto axes = model::input_shape(images);
    nvinfer1::Dims shape{};
    shape.nbDims = int(axes.size());
    for (std::size_t i = 0; i < axes.size(); ++i) shape.d[i] = static_cast<std::decay_t<decltype(shape.d[0])>>(axes[i]);
    const std::size_t read = model::input_elements * images * sizeof(model::Element);
    std::vector<float> logits(std::size_t(images) * model::classes);
    const std::size_t written = logits.size() * sizeof(float);
    void *from = input_.of(read), *to = output_.of(written);
    if (!context_->setInputShape(model::input, shape) || !context_->setTensorAddress(model::input, from) ||
        !context_->setTensorAddress(model::output, to))
      throw std::runtime_error("the engine does not take this batch");
    check(cudaMemcpyAsync(from, input, read, cudaMemcpyHostToDevice, stream_));
    if (!context_->enqueueV3(stream_)) throw std::runtime_error("the engine does not run");
    check(cudaMemcpyAsync(logits.data(), to, written, cudaMemcpyDeviceToHost, stream_));
    check(cudaStreamSynchronize(stream_));
    return logits;
  }

 private:
  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  cudaStream_t stream_ = nullptr;
  Memory input_, output_;
};

}  // namespace

std::unique_ptr<Network> open_network(const std::string& folder) {
  return std::make_unique<TensorRt>(folder + "/model.plan");
}
