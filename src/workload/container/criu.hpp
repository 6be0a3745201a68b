#pragma once
// CRIU as a program: its command line, its time limit, its log turned into an error.

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <sys/types.h>

#include "base/error.hpp"
#include "base/time.hpp"
#include "os/cgroup.hpp"
#include "os/pidfd.hpp"

namespace yado::container {

/// Which CRIU, and its bounds. CRIU may hang (its restorer waits for ever for a peer that died), so it always runs
/// under a limit and dies with all it started.
struct Criu {
  std::filesystem::path binary;        ///< empty: none works on this machine
  std::filesystem::path kernel_cache;  ///< directory where what CRIU learnt of the kernel is kept between runs; may be empty
  nanoseconds limit = 60s;
};

/// `unsupported`, with what to do, when there is no CRIU.
Status require(const Criu& criu);

/// Has CRIU probe the kernel now if nobody has yet, so that the first restore does not have to (46 ms).
Status learn_kernel(const Criu& criu);

struct Externals {
  std::vector<std::pair<std::string, std::string>> mounts;  ///< (path inside, key in the image)
  std::map<std::string, std::filesystem::path> sources;     ///< key -> path outside, for restore
};

struct DumpCall {
  pid_t root_task = 0;
  std::filesystem::path images, work, root;
  std::filesystem::path freezer;  ///< the group is frozen, and is so again afterwards
  Externals externals;
  int network_namespace = -1;
};
/// The tasks are left as they were (in a frozen group).
Status dump(const Criu& criu, const DumpCall& call);

struct RestoreCall {
  std::filesystem::path images, work, root;
  Externals externals;
  std::string pipe_id;  ///< "pipe:[123]" at the dump
  int pipe = -1;        ///< takes its place
  const os::Cgroup* cgroup = nullptr;
  int network_namespace = -1;
  bool stopped = false;  ///< leave every task stopped (as by SIGSTOP)
};
/// The restored first process is a child of the calling thread.
Result<os::Pidfd> restore(const Criu& criu, const RestoreCall& call);

}  // namespace yado::container
