#pragma once
// The way from a cloned child to the container's program. Runs between clone and exec: no memory is allocated, all
// texts were made before.

#include <string>
#include <vector>

#include <linux/filter.h>

namespace yado::container {

struct BindTarget {
  std::string source;  ///< outside
  std::string target;  ///< inside
  bool directory = true;
};

struct FirstProcess {
  std::string root;  ///< mount point of the overlay
  std::vector<BindTarget> binds;
  std::string host_name;
  std::string working_directory;
  std::vector<std::string> command;
  std::vector<std::string> environment;
  std::vector<std::string> search;  ///< absolute candidates for command[0], in order of PATH
  unsigned uid = 0, gid = 0;
  std::vector<sock_filter> system_calls;
  int output = -1;  ///< becomes 1 and 2
  int go = -1;      ///< one byte comes when the ids are mapped; its end means that the supervisor is gone
  int report = -1;  ///< the error goes here as "<errc>:<text>"; closed by exec
};

/// Does not return: execs, or reports and exits.
[[noreturn]] void become_first_process(FirstProcess& plan, char* const* arguments, char* const* environment);

/// What `exec` does once it is inside the namespaces: rights dropped, program started. Does not return.
[[noreturn]] void become_program(FirstProcess& plan, char* const* arguments, char* const* environment);

}  // namespace yado::container
