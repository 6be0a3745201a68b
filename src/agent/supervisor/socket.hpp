#pragma once
// The supervisor's door: SOCK_SEQPACKET, file rights 0600.

#include <filesystem>
#include <optional>
#include <string>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::supervisor {

/// Replaces a socket file left by a dead process.
Result<os::Fd> listen_at(const std::filesystem::path& path);
Result<os::Fd> connect_to(const std::filesystem::path& path);
/// Never blocks: a client that does not read what it asked for loses its connection (`unavailable`).
Status send_packet(const os::Fd& socket, std::string_view text);
/// Nothing: none there now (non-blocking socket). Error `refused` at the end of the connection.
Result<std::optional<std::string>> receive_packet(const os::Fd& socket);

}  // namespace yado::supervisor
