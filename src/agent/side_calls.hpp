#pragma once
// The calls that decide nothing: build an image, copy one, merge one with its bases, drop one, look at an instance.

#include <boost/asio/awaitable.hpp>

#include "agent/images.hpp"
#include "agent/instances.hpp"
#include "agent/merger.hpp"
#include "wire/tls.hpp"

namespace yado::agent {

class SideCalls {
 public:
  struct Surroundings {
    boost::asio::io_context& io;
    const Config& config;
    Workers& workers;
    Images& images;
    Instances& instances;
    const wire::Identity& identity;
  };
  explicit SideCalls(Surroundings around)
      : around_(around), pace_(around.config.background_bytes_per_second), merger_({around.io, around.images, around.identity, pace_}) {}

  boost::asio::awaitable<Result<CallReply>> run(AgentCall what);

 private:
  boost::asio::awaitable<Result<CallReply>> build(BuildCall call);
  boost::asio::awaitable<Result<image::Manifest>> take_image(BuildCall call);
  boost::asio::awaitable<Result<image::Manifest>> checkpoint_owner(BuildCall call, std::string& why_whole);
  boost::asio::awaitable<void> keep_indices(image::Manifest manifest, std::vector<HostAddress> peers);
  boost::asio::awaitable<Result<CallReply>> hand_over(HandoverCall call);
  boost::asio::awaitable<Status> pull_one(ImageId image, Endpoint from, WorkloadSpec spec, bool in_background);
  boost::asio::awaitable<Result<CallReply>> pull(PullCall call);
  Surroundings around_;
  ImagePace pace_;
  Merger merger_;
};

}  // namespace yado::agent
