// From an image to the network's input, step by step as vitdeploy does it with numpy and Pillow.
#pragma once

#include <vector>

#include "image.hpp"

// The pixels [height, width, channels] that resize and crop leave, in the order R, G, B, or grey.
// Throws std::runtime_error for grey of 16 bits where the network takes grey, since the bundle keeps all of them.
Pixels framed(const Pixels& image);

// Those pixels as float32 [channels, height, width]: scaled and normalised, in the order of the network's channels.
std::vector<float> normalised(const Pixels& pixels);
