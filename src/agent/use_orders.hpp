#pragma once
// In which order a VM's pages were used in the first seconds after an image's cut: asked of its pager when they are over, kept beside the image
// (image::Store::use_file), and fetched by whoever copies it.
//
// Advice: an image is complete without it. Whatever goes wrong is forgotten with a line in the log.

#include <map>
#include <string>

#include "agent/images.hpp"
#include "agent/instances.hpp"
#include "agent/promise.hpp"
#include "wire/client.hpp"
#include "wire/tls.hpp"

namespace yado::agent {

class UseOrders {
 public:
  struct Surroundings {
    boost::asio::io_context& io;
    Workers& workers;
    Images& images;
    Instances& instances;
    const wire::Identity& identity;
    std::function<void(boost::asio::awaitable<void>)> spawn;
  };
  explicit UseOrders(Surroundings around) : around_(std::move(around)) {}

  /// An image of this instance has just come into being here.
  void expect(ImageId image, InstanceId of);
  /// A copy of an image has just come from there.
  void fetch(ImageId image, Endpoint from);
  /// For another agent: the file's bytes, when they are known. Error `not_found`: they are not, nor will be.
  boost::asio::awaitable<Result<std::string>> get(ImageId image);

 private:
  boost::asio::awaitable<void> record(ImageId image, InstanceId of);
  boost::asio::awaitable<Status> ask_for(ImageId image, Endpoint from);

  Surroundings around_;
  std::map<ImageId, Promise<bool>> expected_;
};

}  // namespace yado::agent
