#pragma once
// What becomes of a domain of libvirt's (https://libvirt.org/formatdomain.html): a VM of ours, and what a person must know about it. Pure.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "model/workload.hpp"

namespace yado::adopt {

struct Domain {
  std::string name;      ///< libvirt's
  std::string workload;  ///< made of it: a workload's name, or empty when nothing of it can be in one
  VmSpec vm;
  std::vector<std::string> obstacles;  ///< the guest would lack these, or not start: what, and why
  std::vector<std::string> changes;    ///< what is otherwise than it was
};

/// Of `virsh dumpxml --inactive`. Error `invalid_argument` for what is no such XML, whatever the bytes; everything else is an obstacle or a change, a line each.
Result<Domain> read_domain(std::string_view xml);

/// What libvirt does not know.
struct Wishes {
  std::string workload;            ///< its name
  std::vector<std::string> hosts;  ///< empty: to be filled in by a person
  std::uint16_t port = 0;          ///< 0: to be filled in
};

/// A spec file (docs/spec.md) with the obstacles and changes as comments.
std::string spec_text(const Domain& domain, const Wishes& wishes);

}  // namespace yado::adopt
