#pragma once
// What the gate grants its clients. All of it is configuration; the defaults suit a front door on the open internet.

#include <cstddef>
#include <cstdint>

#include "base/time.hpp"
#include "base/units.hpp"

namespace yado::gate {

struct Limits {
  std::size_t connections = 10'000;   ///< more wait in the kernel's backlog
  std::size_t head_bytes = 64_KiB;    ///< of a request (longer: 431) and of an instance's answer (longer: 502)
  std::size_t replay_bytes = 64_KiB;  ///< a body up to this size is kept so that the request can be repeated
  std::size_t whole_answer_bytes = 16_KiB;  ///< an answer up to this length is passed on when all of it is here
  std::size_t kept_connections = 64;  ///< to one instance, while no request needs them
  nanoseconds kept_time = 60s;        ///< for so long at most: a server with a thread per connection pays for each
  nanoseconds head_time = 10s;        ///< from the first byte of a head to its last: later gets 408
  nanoseconds idle_time = 75s;        ///< a client's connection between two requests
  nanoseconds stall_time = 60s;       ///< without any progress in a body, in either direction
};

/// What GET /v1/gate on the admin socket shows. All but the last three only grow.
struct Counters {
  std::uint64_t connections = 0;
  std::uint64_t requests = 0;
  std::uint64_t answers_by_class[6] = {};  ///< [2]: 2xx …, of instances and of the gate alike
  std::uint64_t refused_malformed = 0;     ///< 400, 408, 431, 501, 505: never reached the scheduler
  std::uint64_t refused = 0;               ///< with outcome "none"
  std::uint64_t unknown_outcomes = 0;
  std::uint64_t broken_off = 0;    ///< answers that ended in the middle, with the client's connection reset
  std::uint64_t clients_gone = 0;  ///< before their answer was complete
  std::uint64_t attempts = 0;      ///< requests forwarded, repetitions counted
  std::uint64_t fresh_connections = 0;
  std::uint64_t relocations = 0;             ///< asked for by this gate and brought to an end
  std::uint64_t ticks_without_progress = 0;  ///< a defect if it ever grows
  std::uint64_t events_dropped = 0;
  std::size_t held = 0;
  std::size_t open = 0;
};

}  // namespace yado::gate
