#include "preprocess.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "model.hpp"

namespace {

// Pillow computes 8-bit pixels in whole numbers of so many fractional bits.
constexpr int fraction = 32 - 8 - 2;

double filter(double x) {
  x = std::abs(x);
  if (model::interpolation == model::Interpolation::bilinear) return x < 1 ? 1 - x : 0;
  constexpr double a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// The pixels of a source line that make one target pixel, and their weights.
struct Taps {
  int first;
  std::vector<int> weights;
};

std::vector<Taps> antialiased_taps(int source, int target) {
  const double scale = double(source) / target, stretch = std::max(scale, 1.0);
  const double support = (model::interpolation == model::Interpolation::bilinear ? 1.0 : 2.0) * stretch;
  const double step = 1.0 / stretch;
  std::vector<Taps> found;
  for (int x = 0; x < target; ++x) {
    const double centre = (x + 0.5) * scale;
    const int low = std::max(int(centre - support + 0.5), 0);
    const int high = std::min(int(centre + support + 0.5), source);
    std::vector<double> weights;
    double total = 0;
    for (int i = low; i < high; ++i) {
      weights.push_back(filter((i - centre + 0.5) * step));
      total += weights.back();
    }
    Taps taps{low, {}};
    for (double weight : weights) {
      if (total != 0) weight /= total;
      taps.weights.push_back(int((weight < 0 ? -0.5 : 0.5) + weight * (1 << fraction)));
    }
    found.push_back(std::move(taps));
  }
  return found;
}

std::uint8_t clipped(int value) { return std::uint8_t(std::clamp(value >> fraction, 0, 255)); }

Pixels columns_resized(const Pixels& image, int width) {
  if (width == image.width) return image;
  const auto taps = antialiased_taps(image.width, width);
  Pixels found(image.height, width, image.channels);
  for (int row = 0; row < image.height; ++row)
    for (int column = 0; column < width; ++column)
      for (int channel = 0; channel < image.channels; ++channel) {
        int sum = 1 << (fraction - 1);
        const auto& [first, weights] = taps[column];
        for (std::size_t i = 0; i < weights.size(); ++i)
          sum += image.at(row, first + int(i))[channel] * weights[i];
        found.at(row, column)[channel] = clipped(sum);
      }
  return found;
}

Pixels rows_resized(const Pixels& image, int height) {
  if (height == image.height) return image;
  const auto taps = antialiased_taps(image.height, height);
  Pixels found(height, image.width, image.channels);
  for (int row = 0; row < height; ++row)
    for (int column = 0; column < image.width; ++column)
      for (int channel = 0; channel < image.channels; ++channel) {
        int sum = 1 << (fraction - 1);
        const auto& [first, weights] = taps[row];
        for (std::size_t i = 0; i < weights.size(); ++i)
          sum += image.at(first + int(i), column)[channel] * weights[i];
        found.at(row, column)[channel] = clipped(sum);
      }
  return found;
}

// Keys' cubic convolution in float32 without antialiasing, as tf.image.resize computes it: four taps for each pixel.
struct KeysTaps {
  std::array<int, 4> places;
  std::array<float, 4> weights;
};

std::vector<KeysTaps> keys_taps(int source, int target) {
  const float scale = float(source) / float(target);
  constexpr double a = -0.5;
  std::vector<KeysTaps> found;
  for (int x = 0; x < target; ++x) {
    const float position = (float(x) + 0.5f) * scale - 0.5f;
    const int first = int(std::floor(position));
    const double phase = double(std::nearbyint((position - float(first)) * 1024.0f)) / 1024;
    auto near = [](double x) { return ((a + 2) * x - (a + 3)) * x * x + 1; };
    auto far = [](double x) { return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a; };
    KeysTaps taps{{}, {float(far(phase + 1)), float(near(phase)), float(near(1 - phase)), float(far(2 - phase))}};
    for (int i = 0; i < 4; ++i) {
      const int place = first + i - 1;
      if (place < 0 || place >= source) taps.weights[i] = 0;
      taps.places[i] = std::clamp(place, 0, source - 1);
    }
    const float total = ((taps.weights[0] + taps.weights[1]) + taps.weights[2]) + taps.weights[3];
    for (float& weight : taps.weights) weight = weight * (1.0f / total);
    found.push_back(taps);
  }
  return found;
}

Pixels keys_resized(const Pixels& image, int height, int width) {
  const auto down = keys_taps(image.height, height), along = keys_taps(image.width, width);
  const int depth = image.channels;
  std::vector<float> rows(std::size_t(height) * image.width * depth);
  for (int row = 0; row < height; ++row)
    for (int i = 0; i < image.width * depth; ++i) {
      std::array<float, 4> parts;
      for (int k = 0; k < 4; ++k) parts[k] = float(image.at(down[row].places[k], 0)[i]) * down[row].weights[k];
      rows[std::size_t(row) * image.width * depth + i] = ((parts[0] + parts[1]) + parts[2]) + parts[3];
    }
  Pixels found(height, width, depth);
  for (int row = 0; row < height; ++row)
    for (int column = 0; column < width; ++column)
      for (int channel = 0; channel < depth; ++channel) {
        std::array<float, 4> parts;
        for (int k = 0; k < 4; ++k) {
          const std::size_t place = (std::size_t(row) * image.width + along[column].places[k]) * depth + channel;
          parts[k] = rows[place] * along[column].weights[k];
        }
        const float value = ((parts[0] + parts[1]) + parts[2]) + parts[3];
        found.at(row, column)[channel] = std::uint8_t(std::clamp(value, 0.0f, 255.0f));
      }
  return found;
}

Pixels resized(const Pixels& image, std::int64_t high, std::int64_t wide) {
  if (std::max<std::int64_t>(high, image.height) > std::int64_t(most_pixels) / std::max<std::int64_t>(wide, 1))
    throw std::runtime_error("the image is too long and thin: its resize would have too many pixels");
  const int height = int(high), width = int(wide);
  if (model::interpolation == model::Interpolation::bicubic_no_antialias) return keys_resized(image, height, width);
  return rows_resized(columns_resized(image, width), height);
}

Pixels cropped(const Pixels& image, int top, int left, int height, int width) {
  Pixels found(height, width, image.channels);
  for (int row = 0; row < height; ++row)
    std::memcpy(found.at(row, 0), image.at(top + row, left), std::size_t(width) * image.channels);
  return found;
}

// As `round` of Python: half to even.
int rounded(double value) { return int(std::nearbyint(value)); }

Pixels bordered(const Pixels& image) {
  Pixels found(model::height, model::width, image.channels);
  for (std::size_t i = 0; i < found.values.size(); ++i) found.values[i] = model::border[i % image.channels];
  auto taken = [](int have, int want) { return std::max(0, rounded((have - want) / 2.0)); };
  auto given = [](int have, int want) { return std::max(0, (want - have) / 2); };
  const int rows = std::min(image.height, model::height), columns = std::min(image.width, model::width);
  for (int row = 0; row < rows; ++row)
    std::memcpy(found.at(given(image.height, model::height) + row, given(image.width, model::width)),
                image.at(taken(image.height, model::height) + row, taken(image.width, model::width)),
                std::size_t(columns) * image.channels);
  return found;
}

Pixels grey(const Pixels& image) {
  Pixels found(image.height, image.width, 1);
  for (std::size_t i = 0; i < found.values.size(); ++i) {
    const std::uint8_t* colour = &image.values[3 * i];
    found.values[i] = std::uint8_t((colour[0] * 19595 + colour[1] * 38470 + colour[2] * 7471 + 0x8000) >> 16);
  }
  return found;
}

}  // namespace

Pixels framed(const Pixels& colours) {
  if (model::colours == model::Colours::grey && colours.deep_grey)
    throw std::runtime_error("grey of 16 bits is not read here: convert it to 8 bits");
  const Pixels image = model::colours == model::Colours::grey ? grey(colours) : colours;
  const int height = int(std::floor(model::height / model::crop_ratio));
  const int width = int(std::floor(model::width / model::crop_ratio));
  switch (model::mode) {
    case model::Mode::stretch:
      return resized(image, model::height, model::width);
    case model::Mode::crop_resize: {
      const int side = std::max(1, int(model::crop_ratio * std::min(image.height, image.width)));
      const int top = (image.height - side + 1) / 2, left = (image.width - side + 1) / 2;
      return resized(cropped(image, top, left, side, side), model::height, model::width);
    }
    case model::Mode::border: {
      const double ratio = std::max(double(image.height) / height, double(image.width) / width);
      const int high = std::max(1, rounded(image.height / ratio)), wide = std::max(1, rounded(image.width / ratio));
      return bordered(resized(image, high, wide));
    }
    default: {
      const bool tall = std::int64_t(height) * image.width >= std::int64_t(width) * image.height;
      const std::int64_t high = tall ? height : std::int64_t(width) * image.height / image.width;
      const std::int64_t wide = tall ? std::int64_t(height) * image.width / image.height : width;
      const Pixels found = resized(image, high, wide);
      const int top = rounded((high - model::height) / 2.0), left = rounded((wide - model::width) / 2.0);
      return cropped(found, top, left, model::height, model::width);
    }
  }
}

std::vector<float> normalised(const Pixels& pixels) {
  const std::size_t plane = std::size_t(pixels.height) * pixels.width;
  std::vector<float> found(plane * pixels.channels);
  for (int channel = 0; channel < pixels.channels; ++channel) {
    const int from = model::colours == model::Colours::bgr ? pixels.channels - 1 - channel : channel;
    for (std::size_t i = 0; i < plane; ++i) {
      const float value = float(pixels.values[i * pixels.channels + from]) / model::scale;
      found[channel * plane + i] = (value - model::mean[channel]) / model::deviation[channel];
    }
  }
  return found;
}
