#pragma once
// The network between the lab's machines: a bridge in a namespace of its own, one cable per machine.
//
//   [front 10.77.0.2] eth0 ══ front ┐
//   [h1   10.77.0.11] eth0 ══ h1    ├ bridge "switch" (drops what faults ask for, by port)
//   [h2   10.77.0.12] eth0 ══ h2    ┘
//
// Neighbours are permanent on every machine. With ARP, a cut would be noticed after 3 s ("no route to host"), which
// a router between two sites never says; here a cut is silence and nothing else.

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "net/address.hpp"
#include "os/netns.hpp"

namespace yado::lab {

class Switch {
 public:
  /// `machines`: every name (at most 15 characters) with its address, plugged in or not.
  static Result<Switch> create(std::map<std::string, net::Ipv4> machines, std::uint64_t link_bits_per_second);

  /// A fresh network namespace for the machine, with its cable plugged in and nothing dropped.
  Result<os::Netns> plug_in(const std::string& machine);
  /// Takes the cable away: nothing comes back from there, not even from a kernel that is still cleaning up.
  void unplug(const std::string& machine);

  struct Drop {
    bool to = false;    ///< what is sent to the machine
    bool from = false;  ///< what the machine sends
    bool some = false;  ///< every tenth packet of both, at random
  };
  /// Replaces what is dropped at the machine's port. In force when it returns. Error of `some`, where the kernel has no nft_numgen: its own.
  Status drop(const std::string& machine, Drop drop);

 private:
  Switch(os::Netns netns, std::map<std::string, net::Ipv4> machines, std::uint64_t rate)
      : netns_(std::move(netns)), machines_(std::move(machines)), link_bits_per_second_(rate) {}

  os::Netns netns_;
  std::map<std::string, net::Ipv4> machines_;
  std::uint64_t link_bits_per_second_;  ///< 0: as fast as it goes
  std::set<std::string> to_, from_, lossy_;
  bool can_lose_ = false;  ///< the rules for `lossy_` are there
};

}  // namespace yado::lab
