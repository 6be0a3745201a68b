#pragma once
// Connections to instances, and those kept for later requests. A kept connection goes only to the very endpoint (of the
// very host) that it was made for, and goes away when its server closes it or nobody needed it for a while.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "gate/peer.hpp"
#include "gate/time_limit.hpp"
#include "model/cluster.hpp"
#include "wire/parser.hpp"

namespace yado::gate {

struct Place {
  HostId host;
  Endpoint endpoint;
  auto operator<=>(const Place&) const = default;
};

class Upstream : public Peer {
 public:
  /// Memory per connection, and how far a fast instance may run ahead of a slow client (besides the socket buffers).
  static constexpr std::size_t buffer_bytes = 64 * 1024;

  Upstream(Socket socket, Place at, std::size_t head_bytes)
      : Peer(std::move(socket), buffer_bytes), place(std::move(at)), parser(wire::Parser::Kind::response, head_bytes) {}

  const Place place;
  wire::Parser parser;
  std::optional<TimeLimit::Guard> kept;  ///< while it lies in a Pool
};

class Pool final : private Peer::Watcher {
 public:
  Pool(std::size_t most_per_place, TimeLimit& kept_time) : most_per_place_(most_per_place), kept_time_(kept_time) {}

  /// The one used last, or null.
  std::shared_ptr<Upstream> take(const Place& place);
  /// `upstream` has carried a whole exchange and its server keeps it open.
  void keep(std::shared_ptr<Upstream> upstream);
  /// Closes what leads to places that `wanted` does not accept.
  void retain(const std::function<bool(const Place&)>& wanted);
  void clear();
  std::size_t size() const;

 private:
  void unasked(Peer& peer) override;

  std::size_t most_per_place_;
  TimeLimit& kept_time_;
  std::map<Place, std::vector<std::shared_ptr<Upstream>>> idle_;
};

}  // namespace yado::gate
