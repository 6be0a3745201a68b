#pragma once
// An open-loop client: asks a service over plain HTTP at a fixed pace, whatever became of the earlier requests, as many
// independent users would. Times count from when a request was *due*, so a service that stands still for a second costs
// every request of that second, not only one ("coordinated omission", Tene 2013).

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "model/cluster.hpp"
#include "os/netns.hpp"

namespace yado::drill {

struct LoadOptions {
  Endpoint address;          ///< where the gate listens: numeric
  std::string host;          ///< the Host header; empty: none of our own
  double rate = 50;          ///< requests per second
  std::string path = "/";    ///< of GET requests
  int status = 200;          ///< what a correct answer has
  std::string contains;      ///< and what stands in its body; empty: anything
  std::string post_path;     ///< empty: no POST; "{n}" stands for the request's number
  std::string post_body;     ///< the same
  int post_status = 200;
  double post_share = 0.2;   ///< of all requests, evenly spread
  std::string key_header;    ///< sent with every POST, "<run>-<number>"; empty: none
  nanoseconds limit = 60s;   ///< after which a request without answer is an error
  os::Netns network;         ///< where the sockets are made; none: the caller's network
};

/// What became of one request.
struct Sample {
  std::uint64_t number = 0;
  bool post = false;
  Instant due;      ///< when it should have been sent; it was, if this machine was not late itself
  Instant ended;
  int status = 0;   ///< 0: no answer at all
  bool correct = false;
  bool unknown = false;  ///< it may have taken effect: the gate said so, or there was no answer to a POST
  std::uint64_t epoch = 0;   ///< of who answered; 0: the gate itself, or nobody
  std::string instance;
  std::string error;  ///< why it is not correct, for people
  std::string body;   ///< of a POST's correct answer, at most 4 KiB: what a counting application said
  nanoseconds took() const { return ended - due; }
};

/// Runs on a thread of its own from start() until finish().
class Load {
 public:
  static Result<std::unique_ptr<Load>> start(LoadOptions options);
  ~Load();
  Load(const Load&) = delete;

  /// Every request that has ended so far; a copy.
  std::vector<Sample> samples() const;
  /// Waits for the first correct answer that ended after `since` and `wanted` accepts; nothing when `limit` passed.
  std::optional<Sample> wait_for(const std::function<bool(const Sample&)>& wanted, nanoseconds limit) const;
  /// Starts no more requests, waits for those under way, and returns all, by number.
  std::vector<Sample> finish();

 private:
  struct Impl;
  explicit Load(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace yado::drill
