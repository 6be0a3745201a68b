#pragma once
// Links, addresses, neighbours and routes of one network namespace (rtnetlink(7), through libnl-route).
//
// A socket belongs to the namespace of the thread that opened it, so `Rtnl::open(netns)` is used from any thread and
// works on that namespace. Not thread-safe. Errors: already_exists, not_found, permission, invalid_argument, io.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "net/address.hpp"
#include "os/netns.hpp"

struct nl_sock;

namespace yado::net {

/// Linux allows 15 characters (IFNAMSIZ); longer ones are refused here, with the name in the error.
using LinkName = std::string;

struct VethEnd {
  LinkName name;
  std::optional<Mac> mac;  ///< none: the kernel's choice
};

class Rtnl {
 public:
  static Result<Rtnl> open();  ///< of the calling thread's namespace
  static Result<Rtnl> open(const os::Netns& netns);
  Rtnl(Rtnl&& other) noexcept : socket_(std::exchange(other.socket_, nullptr)) {}
  Rtnl& operator=(Rtnl&& other) noexcept;
  ~Rtnl();

  Status add_bridge(const LinkName& name, Mac mac);
  /// A pair: `here` in this namespace, `there` in `other`.
  Status add_veth(const VethEnd& here, const VethEnd& there, const os::Netns& other);
  Status delete_link(const LinkName& name);
  Result<int> index_of(const LinkName& name);
  bool has_link(const LinkName& name) { return index_of(name).has_value(); }
  Status set_up(const LinkName& name, bool up = true);
  Status set_master(const LinkName& port, const LinkName& bridge);
  /// Lets the bridge send a frame back by the port it came in: for a machine that calls itself by a translated address.
  Status set_hairpin(const LinkName& port);

  /// With `own_route` the kernel adds no route for the prefix: the caller adds one, with the source it wants.
  /// Adding an address that is there already is no error.
  Status add_address(const LinkName& link, Ipv4Prefix address, bool own_route = false);
  /// Deleting one that is not there is no error.
  Status delete_address(const LinkName& link, Ipv4Prefix address);
  /// A route to `destination` (length 0: the default route); `gateway` none: directly on the link.
  Status add_route(const LinkName& link, Ipv4Prefix destination, std::optional<Ipv4> gateway,
                   std::optional<Ipv4> preferred_source);
  /// A permanent neighbour: never asked for by ARP, never given up.
  Status add_neighbour(const LinkName& link, Ipv4 address, Mac mac);

  /// Shapes what leaves by the link (tc-tbf(8)); a queue of up to 50 ms.
  Status set_rate(const LinkName& link, std::uint64_t bits_per_second);

 private:
  explicit Rtnl(nl_sock* socket) : socket_(socket) {}
  nl_sock* socket_ = nullptr;
};

}  // namespace yado::net
