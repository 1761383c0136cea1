#include "image.hpp"

#include <algorithm>
#include <cctype>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>

#include <jpeglib.h>
#include <jerror.h>
#include <png.h>

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::size_t orientation_tag = 0x0112;
constexpr char exif_name[] = {'E', 'x', 'i', 'f', 0, 0}, xmp_name[] = "http://ns.adobe.com/xap/1.0/";

void check_size(std::size_t height, std::size_t width) {
  if (height == 0 || width == 0 || height > most_pixels / width) throw std::runtime_error("too many pixels, or none");
}

// The orientation, 1 to 8, in the bytes of an EXIF block that begins with its TIFF header; 0 where it says none.
int exif_orientation(const std::uint8_t* data, std::size_t size) {
  if (size < 8) return 0;
  const bool little = data[0] == 'I';
  auto number = [&](std::size_t place, int bytes) {
    std::uint32_t found = 0;
    for (int i = 0; i < bytes; ++i) found |= std::uint32_t(data[place + i]) << 8 * (little ? i : bytes - 1 - i);
    return std::size_t(found);
  };
  const std::size_t first = number(4, 4);
  if (first > size || size - first < 2) return 0;
  const std::size_t count = number(first, 2);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t entry = first + 2 + 12 * i;
    if (entry + 12 > size) break;
    if (number(entry, 2) != orientation_tag) continue;
    const std::size_t kind = number(entry + 2, 2);  // of whole numbers: 3 and 8 have 16 bits, 4 and 9 have 32
    const std::size_t value = number(entry + 8, kind == 4 || kind == 9 ? 4 : 2);
    const bool whole = kind == 3 || kind == 8 || kind == 4 || kind == 9;
    return whole && value >= 1 && value <= 8 ? int(value) : 1;
  }
  return 0;
}

// The same in an XMP packet, which counts where the EXIF block says none.
int xmp_orientation(const std::string& packet) {
  const std::string name = "tiff:Orientation";
  for (std::size_t at = packet.find(name); at != std::string::npos; at = packet.find(name, at + 1)) {
    std::size_t value = at + name.size();
    if (packet.compare(value, 1, ">") == 0) value += 1;
    else if (packet.compare(value, 2, "=\"") == 0) value += 2;
    else continue;
    if (value < packet.size() && packet[value] >= '0' && packet[value] <= '9') return packet[value] - '0';
  }
  return 0;
}

// What the file says about which way is up.
struct Orientation {
  int exif = 0, xmp = 0;
  int turn() const {
    const int found = exif != 0 ? exif : xmp;
    return found >= 1 && found <= 8 ? found : 1;
  }
};

Pixels upright(const Pixels& image, int orientation) {
  if (orientation == 1) return image;
  const bool turned = orientation >= 5;
  Pixels found(turned ? image.width : image.height, turned ? image.height : image.width, image.channels);
  found.deep_grey = image.deep_grey;
  for (int row = 0; row < found.height; ++row) {
    for (int column = 0; column < found.width; ++column) {
      int from_row = turned ? column : row, from_column = turned ? row : column;
      if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7)
        from_row = image.height - 1 - from_row;
      if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8)
        from_column = image.width - 1 - from_column;
      std::memcpy(found.at(row, column), image.at(from_row, from_column), image.channels);
    }
  }
  return found;
}

struct JpegFailure {
  jpeg_error_mgr base;
  std::jmp_buf back;
  char text[JMSG_LENGTH_MAX];
};

void jpeg_failed(j_common_ptr info) {
  auto* failure = reinterpret_cast<JpegFailure*>(info->err);
  info->err->format_message(info, failure->text);
  std::longjmp(failure->back, 1);
}

void jpeg_warned(j_common_ptr info, int) {
  if (info->err->msg_code == JWRN_JPEG_EOF) jpeg_failed(info);  // only a part of the image would be there
}

// What a jump back must not pass by: nothing in here has a destructor.
bool decode_jpeg(jpeg_decompress_struct& info, JpegFailure& failure, const Bytes& file, Pixels& image,
                 Orientation& orientation) {
  if (setjmp(failure.back)) return false;
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, file.data(), file.size());
  jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
  jpeg_read_header(&info, TRUE);
  if (info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK) {
    std::strcpy(failure.text, "its colours are CMYK");
    return false;
  }
  for (auto* marker = info.marker_list; marker != nullptr; marker = marker->next) {
    if (marker->data_length > sizeof(exif_name) && std::memcmp(marker->data, exif_name, sizeof(exif_name)) == 0) {
      if (orientation.exif == 0)
        orientation.exif =
            exif_orientation(marker->data + sizeof(exif_name), marker->data_length - sizeof(exif_name));
    } else if (marker->data_length > sizeof(xmp_name) && std::memcmp(marker->data, xmp_name, sizeof(xmp_name)) == 0) {
      const auto* packet = reinterpret_cast<const char*>(marker->data);
      orientation.xmp = xmp_orientation({packet + sizeof(xmp_name), packet + marker->data_length});
    }
  }
  info.out_color_space = JCS_RGB;
  jpeg_start_decompress(&info);
  if (info.output_height == 0 || info.output_height > most_pixels / info.output_width) {
    std::strcpy(failure.text, "it has too many pixels");
    return false;
  }
  image = Pixels(int(info.output_height), int(info.output_width), 3);
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = image.at(int(info.output_scanline), 0);
    jpeg_read_scanlines(&info, &row, 1);
  }
  jpeg_finish_decompress(&info);
  return true;
}

Pixels read_jpeg(const Bytes& file) {
  jpeg_decompress_struct info{};
  JpegFailure failure{};
  info.err = jpeg_std_error(&failure.base);
  failure.base.error_exit = jpeg_failed;
  failure.base.emit_message = jpeg_warned;
  Pixels image;
  Orientation orientation;
  const bool whole = decode_jpeg(info, failure, file, image, orientation);
  jpeg_destroy_decompress(&info);
  if (!whole) throw std::runtime_error(failure.text);
  return upright(image, orientation.turn());
}

struct PngSource {
  const Bytes* file;
  std::size_t place;
  char text[200];
};

void png_failed(png_structp png, png_const_charp text) {
  std::snprintf(static_cast<PngSource*>(png_get_error_ptr(png))->text, 200, "%s", text);
  std::longjmp(png_jmpbuf(png), 1);
}

void png_warned(png_structp, png_const_charp) {}

void png_read_more(png_structp png, png_bytep to, png_size_t count) {
  auto* source = static_cast<PngSource*>(png_get_io_ptr(png));
  if (count > source->file->size() - source->place) png_error(png, "the file ends too early");
  std::memcpy(to, source->file->data() + source->place, count);
  source->place += count;
}

// The bytes of the profile that ImageMagick writes in hexadecimal digits: a blank line, a name, a length, the digits.
Bytes profile_bytes(const std::string& text) {
  std::size_t at = 0;
  for (int line = 0; line < 3 && at < text.size(); ++line) at = std::min(text.find('\n', at), text.size() - 1) + 1;
  Bytes found;
  int digits = 0, value = 0;
  for (; at < text.size(); ++at) {
    if (!std::isxdigit(static_cast<unsigned char>(text[at]))) continue;
    const char digit[] = {text[at], 0};
    value = value * 16 + int(std::strtol(digit, nullptr, 16));
    if (++digits % 2 == 0) found.push_back(std::uint8_t(value)), value = 0;
  }
  return found;
}

bool decode_png(png_structp png, png_infop info, Pixels& image, std::vector<png_bytep>& rows) {
  if (setjmp(png_jmpbuf(png))) return false;
  png_read_info(png, info);
  const auto height = png_get_image_height(png, info), width = png_get_image_width(png, info);
  if (height > most_pixels / width) png_error(png, "it has too many pixels");
  const auto kind = png_get_color_type(png, info);
  const bool deep = kind == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(png, info) == 16;
  png_set_strip_16(png);
  if (kind == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
  if (kind == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(png);
  if (kind == PNG_COLOR_TYPE_GRAY || kind == PNG_COLOR_TYPE_GRAY_ALPHA) png_set_gray_to_rgb(png);
  png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  image = Pixels(int(height), int(width), 3);
  image.deep_grey = deep;
  rows.resize(height);
  for (std::size_t row = 0; row < height; ++row) rows[row] = image.at(int(row), 0);
  png_read_image(png, rows.data());
  png_read_end(png, info);
  return true;
}

Orientation png_orientation(png_structp png, png_infop info) {
  Orientation found;
#ifdef PNG_eXIf_SUPPORTED
  png_bytep exif = nullptr;
  png_uint_32 size = 0;
  if (png_get_eXIf_1(png, info, &size, &exif) != 0) found.exif = exif_orientation(exif, size);
#endif
  png_textp texts = nullptr;
  int count = 0;
  png_get_text(png, info, &texts, &count);
  for (int i = 0; i < count; ++i) {
    const std::string name = texts[i].key, text = texts[i].text == nullptr ? "" : texts[i].text;
    if (name == "XML:com.adobe.xmp") found.xmp = xmp_orientation(text);
    if (name == "Raw profile type exif" && found.exif == 0) {
      const Bytes profile = profile_bytes(text);
      const std::size_t skipped =
          profile.size() > sizeof(exif_name) && std::memcmp(profile.data(), exif_name, sizeof(exif_name)) == 0
              ? sizeof(exif_name)
              : 0;
      found.exif = exif_orientation(profile.data() + skipped, profile.size() - skipped);
    }
  }
  return found;
}

Pixels read_png(const Bytes& file) {
  PngSource source{&file, 0, ""};
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &source, png_failed, png_warned);
  if (png == nullptr) throw std::runtime_error("libpng does not start");
  png_infop info = png_create_info_struct(png);
  png_set_read_fn(png, &source, png_read_more);
  Pixels image;
  std::vector<png_bytep> rows;
  const bool whole = info != nullptr && decode_png(png, info, image, rows);
  const Orientation orientation = whole ? png_orientation(png, info) : Orientation{};
  png_destroy_read_struct(&png, &info, nullptr);
  if (!whole) throw std::runtime_error(source.text);
  return upright(image, orientation.turn());
}

}  // namespace

Pixels read_image(const std::string& path) {
  try {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw std::runtime_error("it cannot be opened");
    const Bytes file{std::istreambuf_iterator<char>(stream), {}};
    Pixels image;
    if (file.size() > 3 && file[0] == 0xFF && file[1] == 0xD8) {
      image = read_jpeg(file);
    } else if (file.size() > 8 && png_sig_cmp(file.data(), 0, 8) == 0) {
      image = read_png(file);
    } else {
      throw std::runtime_error("it is no JPEG and no PNG");
    }
    check_size(std::size_t(image.height), std::size_t(image.width));
    return image;
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path + ": " + error.what());
  }
}
