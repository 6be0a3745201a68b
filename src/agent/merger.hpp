#pragma once
// Images that are deltas, or shares of deltas, are made to need their bases no more, while nothing else is to be done with them
// (docs/formats/image.md, "Merging").
//
//   control ── merge ──▶ Merger ── manifests and indices of what is not here ──▶ agents that have it
//                          │
//                          └─ image::merge_chain, share after share, on a thread of its own of low priority
//                               └── pages that moved here unchanged lie in a log of another host: read from there ──▶
//
// One image at a time. Whoever wants to use an image that is being merged stops that (Images::give_way); killed at any moment, the image is the
// old one or the merged one.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <memory>

#include "agent/image_pace.hpp"
#include "agent/images.hpp"
#include "agent/workers.hpp"
#include "image/chain.hpp"
#include "model/calls.hpp"
#include "wire/client.hpp"
#include "wire/tls.hpp"

namespace yado::agent {

class Merger {
 public:
  struct Surroundings {
    boost::asio::io_context& io;
    Images& images;
    const wire::Identity& identity;
    ImagePace& pace;
  };
  explicit Merger(Surroundings around) : around_(around) {}
  ~Merger() { around_.images.stop_changes(); }

  /// Merges the shares of `call.image` that are here; whoever learns now that all other shares are merged, too, lets go of the base. Errors:
  /// `conflict` (another merge is under way, the image is in use, nothing was left to be done), `not_found` (nothing of it is here),
  /// `canceled`, `corrupt`, and those of transfer::pull.
  boost::asio::awaitable<Result<CallReply>> run(MergeCall call);

 private:
  using Peer = std::shared_ptr<wire::Client>;
  using Peers = std::map<ImageId, Peer>;  ///< who has what is not here
  boost::asio::awaitable<Result<CallReply>> merge(MergeCall call);
  boost::asio::awaitable<Result<Peers>> learn_indices(const MergeCall& call);
  boost::asio::awaitable<Result<bool>> merge_share(ImageId share, Peers peers);
  Status read_from(const Peers& peers, const image::PagePart& part, std::uint64_t offset, std::span<std::byte> bytes, const std::stop_token& stop);
  Status wait_for_turn(std::uint64_t bytes, const std::stop_token& stop);

  Surroundings around_;
  bool busy_ = false;
  Workers thread_{1};
};

}  // namespace yado::agent
