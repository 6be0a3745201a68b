#pragma once
// What the network alone takes for a page: a request of a GET's size one way, 4 KiB and as much again the other way.

#include <string>

#include "base/error.hpp"
#include "split_vm_hosts.hpp"

namespace yado::bench {

struct RoundTrips {
  double p50_us = 0, p99_us = 0;
};

/// One after the other over one TCP connection from the rig's first host to its last one, with mutual TLS as the pager's or without.
Result<RoundTrips> ping_pages(Rig& rig, const WorkDirectories& work, bool tls, int count);

}  // namespace yado::bench
