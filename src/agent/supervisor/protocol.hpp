#pragma once
// What an agent and a supervisor say to each other: one JSON object per SOCK_SEQPACKET packet.
//
//   agent                                                     supervisor
//     │ {"id":1,"do":"restore","epoch":256,…}  ─────────────────▶ │
//     │ ◀───────────── {"event":"renew","ticket":1,"epoch":256}   │  exclusive: nothing runs before the round trip
//     │ {"id":2,"do":"renewed","ticket":1,"ttl_ms":5000}  ──────▶ │
//     │ ◀──────────────────────────────────── {"id":2,"ok":true}  │
//     │ ◀───────────────────── {"event":"state","state":"running"} │
//     │ ◀──────────────────────────── {"id":1,"ok":true,…}        │
//     │ ◀── {"event":"stands","why":"its host's disk is full"}  │  why "": it goes on
//     │ ◀── {"event":"exited","code":1,"signal":0,"why":"","log":"…"} │
//
// A refusal is {"id":…,"error":{"code":"stale-epoch","message":"…"}}. A call with an "epoch" older than the one the
// supervisor knows is refused. Any number of clients; events go to all of them. Answers may overtake each other.
//
//   do            fields                                      answer besides "ok"
//   describe                                                  Description
//   start                                                     —            (after exec; exclusive: after the lease came)
//   restore       parts, properties, frozen                   —            (after it runs; frozen: after it stands)
//   wait_startup  limit_ms                                    listening_us, settled_us
//   freeze                                                    —
//   thaw                                                      —            (exclusive: after the lease came)
//   checkpoint    parts, image, leave_running                 properties
//   hand_over     parts, to, disks_only, ahead, most_disk_bytes   properties   (it stands frozen afterwards, until thaw or promote; not with
//                                                                          disks_only, nor if the properties say not_yet: workload::Handover)
//   resplit       split                                       detail       (when the memory lies so; pager/service.hpp, servers and drained)
//   exec          command                                     code, signal, output (its first 32 KiB), truncated
//   console       from, wait_ms                               output (base64), next, lost: what it wrote since position `from`, as soon as there is some
//   console       input (base64), wait_ms                     taken: how many bytes, as soon as it has taken all; both at the latest after wait_ms (at most 5 s)
//   signal        number                                      —
//   memory                                                    where the pages of a VM with split memory are (pager/service.hpp, figures)
//   used          cut, into                                   —            (in which order a VM used its memory after that cut: a file; pager/service.hpp)
//   stats                                                     cpu_us, memory_bytes, memory_limit_kills
//   log                                                       log (its last 16 KiB)
//   promote       epoch, lease_ms, thaw                       —            (a standby becomes the owner)
//   set_lease     lease_ms                                    —            (0: none needed)
//   renewed       ticket, ttl_ms                              —
//   refused                                                   —            (control: this epoch is over; frozen for good)
//   stop          grace_ms                                    code, signal (and the supervisor ends)

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "base/error.hpp"
#include "base/time.hpp"
#include "model/cluster.hpp"
#include "model/workload.hpp"

namespace yado::supervisor {

/// Everything a supervisor is told when it is started; kept in <directory>/supervisor.json.
struct Config {
  InstanceId instance;
  WorkloadSpec spec;
  Epoch epoch;
  Purpose purpose = Purpose::owner;
  std::filesystem::path directory;    ///< of the instance; exists, mode 0700; the socket and the log are in it
  std::filesystem::path root;         ///< the root file system as a directory (container/prepare_root.hpp)
  std::string cgroup;                 ///< "yado/<agent>/<instance>"
  std::uint32_t id_base = 100'000;
  std::filesystem::path criu;         ///< empty: none works
  std::filesystem::path criu_cache;   ///< directory shared by the supervisors of a host
  milliseconds criu_limit{60'000};
  std::filesystem::path identity;     ///< directory of the agent's: by it a pager proves who it is to memory servers
  std::vector<std::string> disks_ahead;  ///< of an instance that is expected: workload::Handover::ahead
  std::uint64_t log_bytes = 4u << 20; ///< then log becomes log.1, and the old log.1 goes
};
std::string to_text(const Config& config);
Result<Config> config_from_text(std::string_view text);

inline std::filesystem::path socket_of(const std::filesystem::path& directory) { return directory / "supervisor.sock"; }
inline std::filesystem::path config_of(const std::filesystem::path& directory) { return directory / "supervisor.json"; }
inline std::filesystem::path log_of(const std::filesystem::path& directory) { return directory / "log"; }

enum class How { none, started, restored };

struct Description {
  InstanceId instance;
  WorkloadId workload;
  Epoch epoch;
  Purpose purpose = Purpose::owner;
  InstanceState state = InstanceState::starting;
  std::int64_t supervisor_pid = 0;
  std::int64_t pid = 0;        ///< of the first process, outside; 0: none
  How how = How::none;
  milliseconds age{0};         ///< since it was started or restored
  milliseconds state_age{0};   ///< since `state` began
  std::string log_path;
  bool lease_needed = false;
  bool lease_held = false;
  std::string stands;          ///< why it stands still although it runs; empty: it does not
  int exit_code = 0, exit_signal = 0;  ///< when exited
};
void to_json(nlohmann::json& json, const Description& value);
void read_json(const nlohmann::json& json, const std::string& path, Status& status, Description& value);

/// Largest packet either side sends: below what a socket's buffer takes by default once JSON has escaped it.
inline constexpr std::size_t packet_bytes = 200 * 1024;
inline constexpr std::size_t exec_output_bytes = 32 * 1024;
inline constexpr std::size_t log_tail_bytes = 16 * 1024;

}  // namespace yado::supervisor
