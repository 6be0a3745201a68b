#pragma once
// Process 1 of a lab host: starts what the lab asks for, reaps everything, and takes all of it down when it ends,
// because the kernel kills a pid namespace with its process 1. It ends with the lab, whatever the lab dies of.
//
//   lab ── seqpacket ──▶ init      SpawnRequest + descriptors: [status pipe, then one per target number]
//       ◀──────────────            SpawnReply (+ pidfd); the first one, unasked, says that init is ready
//   status pipe ◀───────           os::ExitStatus once the process is reaped; end of file: it died with the host
//
// One request is outstanding at a time. Both ends are this binary: no versions, native byte order.

#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::lab {

struct SpawnRequest {
  std::vector<std::string> arguments;
  std::vector<std::string> environment;
  std::string directory;
  std::vector<int> targets;  ///< numbers in the new process
};

struct SpawnReply {
  Errc error = Errc::internal;
  std::string message;  ///< empty: success
};

/// One message with its descriptors; nothing at end of file.
template <class Message>
struct Received {
  Message message;
  std::vector<os::Fd> descriptors;
};
Status send_message(const os::Fd& socket, const SpawnRequest& request, const std::vector<int>& descriptors);
Status send_message(const os::Fd& socket, const SpawnReply& reply, const std::vector<int>& descriptors);
template <class Message>
Result<std::optional<Received<Message>>> receive_message(const os::Fd& socket);

struct InitOptions {
  int control = -1;            ///< our end of the socket
  int lab_process = -1;        ///< pidfd of the lab
  std::string host_cgroup;     ///< thawed when the host dies
  std::string process_cgroup;  ///< where started programs go
};

/// Runs in a forked child that is process 1 of its pid namespace and alone in its mount and network namespaces.
/// Returns the exit status. Uses no lock that another thread may have held at the fork, other than malloc's.
int host_init(const InitOptions& options);

}  // namespace yado::lab
