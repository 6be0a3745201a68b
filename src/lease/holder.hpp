#pragma once
// The supervisor's side of a lease: when may the instance run, and when must it be frozen.
//
// A renewal is a numbered ticket. Its lease runs from the moment the ticket was *issued* here, not from when the
// answer came back: so a slow or repeated answer can only make the lease shorter (Gray and Cheriton, "Leases", 1989).
// Deadlines are BootClock's, which goes on while the machine is suspended.

#include <cstdint>
#include <deque>
#include <optional>

#include "base/time.hpp"

namespace yado::lease {

class Holder {
 public:
  struct Decision {
    bool freeze = false;                       ///< freeze the instance now
    bool run = false;                          ///< the instance may (again) run
    std::optional<std::uint64_t> send_renewal;  ///< ask for a renewal with this ticket
  };

  /// `ttl`: what control will grant; only used to pace renewals until the first answer.
  explicit Holder(milliseconds ttl) : ttl_(ttl) {}

  /// The instance exists, frozen or not yet executed. Asks for a lease: nothing runs before a round trip.
  Decision begin(Instant now);
  /// The answer to `ticket`. Unknown tickets are ignored.
  Decision renewed(std::uint64_t ticket, milliseconds ttl, Instant now);
  /// Control says that this epoch is not the owner's any more. There is no way back from here.
  Decision refused();
  /// Call at next_deadline(), and at any other time: early calls do nothing.
  Decision tick(Instant now);
  /// The instance was frozen by somebody else and is to run again, or the machine woke from a suspend.
  Decision wake(Instant now);

  /// The instance was frozen on purpose (a standby, or asleep) and needs no lease until begin() is called again.
  void sleep();

  Instant next_deadline() const;
  bool may_run(Instant now) const { return !refused_ && now < deadline_; }
  Instant deadline() const { return deadline_; }

 private:
  struct Ticket {
    std::uint64_t number;
    Instant issued;
  };

  Decision ask(Instant now);

  milliseconds ttl_;
  std::deque<Ticket> tickets_;
  std::uint64_t last_ticket_ = 0;
  Instant deadline_{};
  Instant next_ask_{};
  bool running_ = false;
  bool refused_ = false;
};

}  // namespace yado::lease
