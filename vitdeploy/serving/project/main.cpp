// classify IMAGE...            prints the likeliest classes of each image
// classify --check             compares the network with the reference of the bundle: 0 it holds, 1 it does not
// --folder DIR                 where the model and the reference are
// --top-k N                    classes of each image (5)
// --logits FILE                also writes the logits of all images, float32 one after another
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "image.hpp"
#include "model.hpp"
#include "network.hpp"
#include "preprocess.hpp"

namespace {

constexpr std::size_t input_bytes = model::input_elements * sizeof(model::Element);

// A fixed batch is filled with copies of the image.
std::vector<float> logits_of(Network& network, const char* input) {
  std::vector<char> batch;
  for (int i = 0; i < model::batch; ++i) batch.insert(batch.end(), input, input + input_bytes);
  std::vector<float> found = network.run(batch.data(), model::batch);
  found.resize(model::classes);
  return found;
}

std::vector<char> input_of(const std::string& path) {
  const Pixels pixels = framed(read_image(path));
  std::vector<char> found(input_bytes);
  if (model::takes_pixels) {
    std::memcpy(found.data(), pixels.values.data(), input_bytes);
  } else {
    std::memcpy(found.data(), normalised(pixels).data(), input_bytes);
  }
  return found;
}

void print_best(const std::string& path, const std::vector<float>& logits, int count) {
  if (!std::all_of(logits.begin(), logits.end(), [](float logit) { return std::isfinite(logit); }))
    throw std::runtime_error("the network gives NaN or Inf for " + path);
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  double total = 0;
  for (float logit : logits) total += std::exp(double(logit) - logits[order[0]]);
  std::printf("%s\n", path.c_str());
  for (int i = 0; i < std::min(count, int(order.size())); ++i)
    std::printf("  %6.2f %%  %s\n", 100 * std::exp(double(logits[order[i]]) - logits[order[0]]) / total,
                model::labels[order[i]]);
}

std::vector<char> contents(const std::string& path, std::size_t size) {
  std::ifstream stream(path, std::ios::binary);
  std::vector<char> found{std::istreambuf_iterator<char>(stream), {}};
  if (!stream || found.size() != size) throw std::runtime_error(path + " is missing, or not of this network");
  return found;
}

int check(Network& network, const std::string& folder) {
  const auto inputs = contents(folder + "/reference/inputs.bin", input_bytes * model::references);
  const auto outputs = contents(folder + "/reference/outputs.bin", sizeof(float) * model::classes * model::references);
  std::vector<float> expected(std::size_t(model::classes) * model::references);
  std::memcpy(expected.data(), outputs.data(), outputs.size());
  double error = 0, largest = 0, noise = 0, power = 0;
  for (int image = 0; image < model::references; ++image) {
    const auto found = logits_of(network, &inputs[image * input_bytes]);
    for (int i = 0; i < model::classes; ++i) {
      const double right = expected[std::size_t(image) * model::classes + i], difference = found[i] - right;
      error = std::isnan(difference) ? INFINITY : std::max(error, std::abs(difference));
      largest = std::max(largest, std::abs(right));
      noise += difference * difference;
      power += right * right;
    }
  }
  const double relative = error / largest, ratio = 10 * std::log10(power / noise);
  std::printf("%d images: max error %.3g (%.3g of the largest), signal to noise %.1f dB\n", model::references, error,
              relative, ratio);
  const bool holds = std::isfinite(error) && (model::max_relative == 0 || relative <= model::max_relative) &&
                     (model::min_snr_db == 0 || ratio >= model::min_snr_db);
  if (model::max_relative == 0 && model::min_snr_db == 0 && holds)
    std::puts("the outputs are finite; INT8 is judged by its accuracy on data: vitdeploy validate");
  else
    std::puts(holds ? "passed: the network gives the outputs of the reference" : "failed: the outputs differ");
  return holds ? 0 : 1;
}

int usage(const std::string& why) {
  std::fprintf(stderr, "error: %s\nusage: classify [--folder DIR] [--top-k N] [--logits FILE] IMAGE... | --check\n",
               why.c_str());
  return 2;
}

}  // namespace

int main(int count, char** words) {
  std::string folder = FOLDER, file;
  std::vector<std::string> images;
  bool checks = false;
  int best = 5;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const bool last = i + 1 == count;
    if (word == "--check") {
      checks = true;
    } else if (word == "--folder" || word == "--top-k" || word == "--logits") {
      if (last) return usage(word + " needs a value");
      const std::string value = words[++i];
      if (word == "--folder") folder = value;
      if (word == "--logits") file = value;
      if (word == "--top-k" && (best = std::atoi(value.c_str())) < 1) return usage("--top-k takes a number from 1 on");
    } else if (word.rfind("--", 0) == 0) {
      return usage("there is no option " + word);
    } else {
      images.push_back(word);
    }
  }
  if (images.empty() != checks) return usage(checks ? "--check takes no images" : "no image was given");
  try {
    const auto network = open_network(folder);
    if (checks) return check(*network, folder);
    std::vector<float> all;
    for (const auto& path : images) {
      const auto logits = logits_of(*network, input_of(path).data());
      print_best(path, logits, best);
      all.insert(all.end(), logits.begin(), logits.end());
    }
    if (!file.empty()) {
      std::ofstream stream(file, std::ios::binary);
      stream.write(reinterpret_cast<const char*>(all.data()), std::streamsize(all.size() * sizeof(float)));
      stream.close();
      if (!stream) throw std::runtime_error("cannot write " + file);
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
