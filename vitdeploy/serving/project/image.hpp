// Images as they are read: upright, 8 bits, R, G, B.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

struct Pixels {
  int height = 0, width = 0, channels = 0;
  bool deep_grey = false;  // grey of 16 bits in the file, of which these are the upper ones
  std::vector<std::uint8_t> values;  // [height, width, channels]

  Pixels() = default;
  Pixels(int rows, int columns, int depth)
      : height(rows), width(columns), channels(depth), values(std::size_t(rows) * columns * depth) {}
  std::uint8_t* at(int row, int column) { return &values[(std::size_t(row) * width + column) * channels]; }
  const std::uint8_t* at(int row, int column) const { return &values[(std::size_t(row) * width + column) * channels]; }
};

// As many pixels as Pillow takes at most.
constexpr std::size_t most_pixels = 89478485;

// The image in a JPEG or PNG file, turned as its EXIF or XMP orientation says; transparency is dropped, and 16 bits keep
// their upper byte. Throws std::runtime_error for anything else.
Pixels read_image(const std::string& path);
