// What every runtime does: opened once, then called with the bytes of an input.
#pragma once

#include <memory>
#include <string>
#include <vector>

class Network {
 public:
  virtual ~Network() = default;
  // The logits [images, classes] for `images` images; `input` holds them as model.hpp says, one after another.
  virtual std::vector<float> run(const void* input, int images) = 0;
};

// The network in the model of the folder; throws a std::exception where the runtime refuses it.
std::unique_ptr<Network> open_network(const std::string& folder);
