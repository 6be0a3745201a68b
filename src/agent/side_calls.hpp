#pragma once
// The calls that decide nothing: build an image, copy one, merge one with its bases, drop one, look at an instance.

#include <boost/asio/awaitable.hpp>

#include "agent/images.hpp"
#include "agent/instances.hpp"
#include "agent/merger.hpp"
#include "agent/use_orders.hpp"
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
    std::function<void(boost::asio::awaitable<void>)> spawn;
  };
  explicit SideCalls(Surroundings around)
      : around_(std::move(around)), pace_(around_.config.background_bytes_per_second), merger_({around_.io, around_.images, around_.identity, pace_}),
        use_orders_({around_.io, around_.workers, around_.images, around_.instances, around_.identity, around_.spawn}) {}

  boost::asio::awaitable<Result<CallReply>> run(AgentCall what);
  UseOrders& use_orders() { return use_orders_; }

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
  UseOrders use_orders_;
};

}  // namespace yado::agent
