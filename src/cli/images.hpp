#pragma once
// The parts of `yado images` that look into one image; images.cpp has the command line.

#include <cstdint>
#include <string>

#include "base/error.hpp"

namespace yado::image {
class Store;
}

namespace yado::cli {

/// Where an agent keeps its images by default.
inline constexpr const char* default_store = "/var/lib/yado/agent/images";

struct ImageOptions {
  std::string store;    ///< empty: of the cluster, through control; of import: default_store
  std::string control;  ///< as given
  std::string id;
  std::string file;      ///< export, import
  std::string workload;  ///< import
  std::string like;      ///< import: image whose other parts are taken
  bool verify = false;   ///< show
  bool json = false;
};

/// Each returns the exit status and has said what went wrong.
int show_image(const ImageOptions& options);
int export_image(const ImageOptions& options);
int import_image(const ImageOptions& options);

/// "verified 45 %" on stderr, in place, when that is a terminal.
class Progress {
 public:
  Progress(std::string what, std::uint64_t of);
  ~Progress();  ///< clears the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void add(std::uint64_t amount);

 private:
  std::string what_;
  std::uint64_t of_, done_ = 0;
  int shown_ = -1;  ///< percent
  bool terminal_;
};

}  // namespace yado::cli
