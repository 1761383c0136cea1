// TensorRT and the CUDA runtime, played on the CPU to run tensorrt.cpp: an engine is a model of ONNX that OpenVINO
// computes. What is asked of a stream is done when it is waited for, and memory of the device has the size that it got.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <openvino/openvino.hpp>
#include <string>
#include <vector>

namespace {

std::map<void*, std::size_t> device;                // memory by its address
std::vector<std::function<cudaError_t()>> stream;   // what was asked
const cudaError_t wrong = static_cast<cudaError_t>(1);

bool fits(const void* address, std::size_t size) {
  const auto found = device.find(const_cast<void*>(address));
  return found != device.end() && size <= found->second;
}

struct Context : nvinfer1::IExecutionContext {
  explicit Context(const ov::CompiledModel& compiled) : model(compiled) {}
  ov::CompiledModel model;
  std::map<std::string, ov::Shape> shapes;
  std::map<std::string, void*> addresses;

  cudaError_t run() {
    auto request = model.create_infer_request();
    for (const auto& port : model.inputs()) {
      const auto name = port.get_any_name();
      const ov::Tensor tensor(port.get_element_type(), shapes.at(name), addresses.at(name));
      if (!fits(tensor.data(), tensor.get_byte_size())) return wrong;
      request.set_tensor(name, tensor);
    }
    request.infer();
    for (const auto& port : model.outputs()) {
      const auto name = port.get_any_name();
      const auto tensor = request.get_tensor(name);
      if (!fits(addresses.at(name), tensor.get_byte_size())) return wrong;
      std::memcpy(addresses.at(name), tensor.data(), tensor.get_byte_size());
    }
    return cudaSuccess;
  }
};

struct Engine : nvinfer1::ICudaEngine {
  ov::CompiledModel model;
};

}  // namespace

namespace nvinfer1 {

bool IExecutionContext::setInputShape(const char* name, const Dims& dims) noexcept {
  auto& context = static_cast<Context&>(*this);
  const ov::Shape shape(dims.d, dims.d + dims.nbDims);
  if (!context.model.input(name).get_partial_shape().compatible(shape)) return false;
  context.shapes[name] = shape;
  return true;
}

bool IExecutionContext::setTensorAddress(const char* name, void* data) noexcept {
  static_cast<Context&>(*this).addresses[name] = data;
  return true;
}

bool IExecutionContext::enqueueV3(cudaStream_t) noexcept {
  stream.emplace_back([this] { return static_cast<Context&>(*this).run(); });
  return true;
}

IExecutionContext* ICudaEngine::createExecutionContext() noexcept {
  return new Context(static_cast<Engine&>(*this).model);
}

ICudaEngine* IRuntime::deserializeCudaEngine(const void* blob, std::size_t size) noexcept {
  try {
    const std::string text(static_cast<const char*>(blob), size);
    ov::Core core;
    auto* engine = new Engine;
    engine->model = core.compile_model(core.read_model(text, ov::Tensor()), "CPU",
                                       ov::hint::inference_precision(ov::element::f32));
    return engine;
  } catch (const std::exception&) {
    return nullptr;
  }
}

IRuntime* createInferRuntime(ILogger&) noexcept { return new IRuntime; }

}  // namespace nvinfer1

extern "C" {

const char* cudaGetErrorString(cudaError_t) { return "played error"; }

cudaError_t cudaMalloc(void** pointer, std::size_t size) {
  *pointer = std::malloc(size);
  device[*pointer] = size;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  if (pointer != nullptr && device.erase(pointer) == 0) return wrong;
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t*) { return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  for (const auto& asked : stream)
    if (asked() != cudaSuccess) return wrong;
  stream.clear();
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t count, cudaMemcpyKind kind, cudaStream_t) {
  if (!fits(kind == cudaMemcpyHostToDevice ? to : from, count)) return wrong;
  stream.emplace_back([=] { return std::memcpy(to, from, count), cudaSuccess; });
  return cudaSuccess;
}
}
