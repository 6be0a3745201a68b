#pragma once
// `yado pager`: the process beside one QEMU that pages its memory, and the calls that it answers.
//
//   descriptor 3  the hook's socket (hook_protocol.h)        descriptor 4  a pipe for "ok", or why it cannot begin
//
// Calls are JSON objects, a line each, over a unix stream socket in the instance's directory; one answer each:
// {"ok":true,…} or {"error":{"code":…,"message":…}}. A connection that ends with a checkpoint under way abandons it. A call has at most 1 MiB; of
// more than 64 connections at once the further ones are answered with no_space.
//
//   do        fields                                    answer besides "ok"
//   figures                                             memory_bytes, faults, servers, … (docs/api.md); during a checkpoint saving: [{host, saved_bytes,
//                                                       left_bytes}]: what is here (an empty name) is of now, what servers have is as of the look before
//   limit     bytes                                     —
//   servers   local_bytes, servers: as in the           notes: [text]   (what is not quite as asked for)
//             configuration, without load
//   drained                                             —             (when nobody is being emptied any more)
//   save      part, name, cut, base_cut, base,          pages, here, left   (begins; the workload runs on): what changed since the cut that was
//             bytes_per_second: of each host, 0:                      kept last, if that is `base_cut`, else all
//             as configured; the smaller limit counts
//   round                                               pages, here, left   (again; pages: saved on all hosts, here: of these on this one)
//   copy                                                left          (again, into memory: when little is left, or less than a disk could keep up with)
//   rest                                                as round      (the workload stands still before, until `fix`: what there is no room to copy is written now)
//   fix                                                 —             (the workload stands still before, until the answer)
//   finish                                              shares: [{host, pages, bytes, sum}], base_cut: empty if all was saved,
//                                                       bytes_per_second: the limit of each host, 0: none
//   keep                                                shares, now with the sum of each server's manifest
//   used      cut, into                                 —             (the order in which pages were used in the first seconds after that cut, as far
//                                                                     as they are over: a file, docs/formats/pages.md, "working-set". Error conflict:
//                                                                     the last cut that was kept is another)
//   leave     to                                        pages, left   (another main host is to go on: write_back.hpp. `to`: its name)
//   inherit   config: another configuration             —             (of one that waits: the first call, and the only one until it is answered.
//                                                                     What it is to inherit it only reads, until `own`)
//   own       epoch                                     —             (in front of the first step of a guest whose memory is inherited, and before one
//                                                                     that was left goes on after all: heritage.hpp. Errors: not_owner, somebody
//                                                                     else's guest may have run; unavailable, a page of it is lost. Else: nothing)
//   left      part                                      servers: as in the configuration, with the sessions to inherit  (it stands still
//                                                                     from before the call; the order of use and what changed since the last
//                                                                     image are written into `part`)
//
// `servers` says who holds the memory from now on; it is answered as soon as the missing ones are connected, with an error if one cannot be:
// then nothing has changed. Those that are not named any more are emptied (drain.hpp) and their sessions ended; `drained` waits for that, as `save` and `leave` do. Its
// error says who could not be emptied, for want of how much room: that server stays in use. A change during a checkpoint is a
// conflict. With parity a change that leaves too few servers for it is unsupported, and `leave` is unavailable as long as a dead
// one has no replacement: what it had is only in the parity, of which the next host knows nothing.
//
// Errors are numbered as everywhere (base/error.hpp).

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "image/page.hpp"
#include "os/fd.hpp"

namespace yado::pager {

/// What a pager is told when it is started.
struct ServiceConfig {
  struct Server {
    std::string host;          ///< its name, for people
    std::string unix_path;     ///< or:
    std::string address;
    std::uint16_t port = 0;
    std::string expected_peer;
    std::uint64_t quota_bytes = 0;
    bool leaving = false;      ///< in use, but emptied from the start: into the local memory as far as it has room, then to the others
    std::vector<std::string> load;  ///< images in its store that hold a share of this memory, the self-contained one first
    /// Of `image`'s directories those of parts whose logs this server has: it loads the pages that are newest there. None: all it has.
    std::vector<std::filesystem::path> parts;
    std::uint64_t instance = 0;     ///< of a session that is inherited with its pages; 0: a new one is begun
    std::uint64_t epoch = 0;        ///< of that session's owner, who has left it …
    std::uint64_t held_pages = 0, puts = 0;  ///< … like this (SessionStats): whoever inherits it must find it so
    /// Of its session for parity, which is inherited, too, but not what is in it; 0: a new one is begun.
    std::uint64_t parity_instance = 0;
    unsigned parity_columns = 0;    ///< its size follows from these; 0: from how many servers there are
  };
  std::filesystem::path control;   ///< the socket to make
  std::uint64_t memory_bytes = 0;
  std::uint64_t local_bytes = 0;
  std::uint32_t prefetch_pages = 64;
  unsigned copies = 1;
  bool parity = false;             ///< one XOR over pages of several servers instead of a second copy: at least three servers, or none at all
  std::uint64_t save_bytes_per_second = 0;  ///< that each host writes at most for a checkpoint; 0: no limit
  std::string session;
  std::uint64_t epoch = 0;
  std::vector<Server> servers;
  std::filesystem::path identity;  ///< directory, for TLS; empty: none
  /// What to restore: of each image of the chain, the self-contained one first, the directories of its parts of pages, as far as they are on
  /// this host; of a chain of several, of all its parts, perhaps without their logs.
  std::vector<std::vector<std::filesystem::path>> image;
  std::filesystem::path use;      ///< file: in which order pages of `image` were used after its cut; empty: not known
  std::filesystem::path left_in;  ///< directory with what else was left of an inherited memory: the order of use, and what changed since an image; empty: nothing
  /// It does not know yet what it is to inherit: lets the process go and waits to be told (`inherit`). No server is asked before; whoever of the
  /// process touches the memory waits, too.
  bool waits = false;
  bool operator==(const ServiceConfig&) const;
};
std::string to_text(const ServiceConfig& config);
Result<ServiceConfig> config_from_text(std::string_view text);
/// As a JSON array, which the call `servers` takes.
std::string to_text(const std::vector<ServiceConfig::Server>& servers);
Result<std::vector<ServiceConfig::Server>> servers_from_text(std::string_view text);

/// The process: returns when the workload's process has ended (0), or when this memory cannot be kept (1).
int run_service(const std::filesystem::path& config);

}  // namespace yado::pager
