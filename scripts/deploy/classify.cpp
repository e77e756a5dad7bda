// Names what is on images, without Python: what `adderzoo export --format aoti` has written, run by LibTorch.
//
//     classify PACKAGE.pt2 adderzoo/_C.abi3.so IMAGE.png ...
//
// The package says how images become input; they are PNGs of 8 bits a channel.

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <png.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace {

using Metadata = std::unordered_map<std::string, std::string>;

constexpr int64_t kTop = 5;

const std::string& text(const Metadata& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  if (found == metadata.end())
    throw std::runtime_error("the package must say its " + key + ": is it of adderzoo export, and a classifier?");
  return found->second;
}

template <typename T>
std::vector<T> numbers(const Metadata& metadata, const std::string& key, size_t count) {
  std::istringstream stream(text(metadata, key));
  std::vector<T> values;
  for (T value; stream >> value;) values.push_back(value);
  if (values.size() != count)
    throw std::runtime_error("the package's " + key + " must be " + std::to_string(count) + " numbers, got '" +
                             text(metadata, key) + "'");
  return values;
}

// (1, 3, H, W) of bytes; an alpha channel is left out.
at::Tensor read_png(const std::string& path) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  if (!png_image_begin_read_from_file(&image, path.c_str()))
    throw std::runtime_error("image " + path + " cannot be read: " + image.message);
  if (image.format & PNG_FORMAT_FLAG_LINEAR) {
    png_image_free(&image);
    throw std::runtime_error("image " + path + " must have 8 bits a channel, got 16");
  }
  image.format = PNG_FORMAT_RGBA;
  at::Tensor pixels = at::empty({1, image.height, image.width, 4}, at::kByte);
  if (!png_image_finish_read(&image, nullptr, pixels.data_ptr(), 0, nullptr))
    throw std::runtime_error("image " + path + " cannot be read: " + image.message);
  return pixels.narrow(3, 0, 3).permute({0, 3, 1, 2}).contiguous();
}

// Rec. 601 in integers, as Pillow has it; what is gray stays what it is.
at::Tensor luma(const at::Tensor& rgb) {
  const at::Tensor wide = rgb.to(at::kInt);
  const at::Tensor sum = wide.select(1, 0) * 19595 + wide.select(1, 1) * 38470 + wide.select(1, 2) * 7471 + 32768;
  return at::floor_divide(sum, 65536).to(at::kByte).unsqueeze(1);
}

// What timm's create_transform does for evaluation: the shorter side resized, the middle cut out, normalized.
at::Tensor preprocess(at::Tensor image, const Metadata& metadata) {
  const auto size = numbers<int64_t>(metadata, "input_size", 3);
  const int64_t channels = size[0], side = size[1];
  if (size[1] != size[2] || text(metadata, "crop_mode") != "center")
    throw std::runtime_error("the input must be a square from the middle of the image");
  if (channels == 1) image = luma(image);

  const double part = numbers<double>(metadata, "crop_pct", 1)[0];
  const auto shorter = static_cast<int64_t>(std::floor(side / part));
  const int64_t height = image.size(2), width = image.size(3), least = std::min(height, width);
  const std::vector<int64_t> resized = {shorter * height / least, shorter * width / least};
  const std::string& interpolation = text(metadata, "interpolation");
  if (resized[0] != height || resized[1] != width) {
    if (interpolation == "bicubic")
      image = at::_upsample_bicubic2d_aa(image, resized, /*align_corners=*/false);
    else if (interpolation == "bilinear")
      image = at::_upsample_bilinear2d_aa(image, resized, /*align_corners=*/false);
    else
      throw std::runtime_error("interpolation must be bicubic or bilinear, got " + interpolation);
  }
  const auto top = static_cast<int64_t>(std::nearbyint((resized[0] - side) / 2.0));
  const auto left = static_cast<int64_t>(std::nearbyint((resized[1] - side) / 2.0));
  image = image.narrow(2, top, side).narrow(3, left, side);

  const auto values = [&](const std::string& key) {
    return at::tensor(numbers<double>(metadata, key, channels), at::kFloat).view({1, channels, 1, 1});
  };
  return ((image.to(at::kFloat) / 255 - values("mean")) / values("std")).contiguous();
}

std::vector<std::string> lines(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> found;
  for (std::string line; std::getline(stream, line);) found.push_back(line);
  return found;
}

void run(const std::string& package, const std::string& library, const std::vector<std::string>& paths) {
  // Registers the operators; nothing of it is called by name.
  if (!dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  const c10::InferenceMode guard;
  torch::inductor::AOTIModelPackageLoader network(package);
  const Metadata metadata = network.get_metadata();
  const std::vector<std::string> classes = lines(text(metadata, "classes"));
  for (const std::string& path : paths) {
    const at::Tensor probabilities = network.run({preprocess(read_png(path), metadata)}).at(0).softmax(1)[0];
    if (probabilities.size(0) != static_cast<int64_t>(classes.size()))
      throw std::runtime_error("the package must name as many classes as the network has");
    const auto [values, indices] = probabilities.topk(std::min(kTop, probabilities.size(0)));
    std::printf("%s\n", path.c_str());
    for (int64_t rank = 0; rank < values.size(0); ++rank)
      std::printf("%7.2f %%  %s\n", 100 * values[rank].item<double>(), classes[indices[rank].item<int64_t>()].c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 3) {
    std::fprintf(stderr, "usage: classify PACKAGE.pt2 LIBRARY.so IMAGE.png ...\n");
    return 2;
  }
  try {
    run(arguments[0], arguments[1], {arguments.begin() + 2, arguments.end()});
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "classify: error: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: error: %s\n", error.what());
    return 1;
  }
  return 0;
}
