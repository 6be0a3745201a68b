// yado-bench-split-vm-host: the processes of a split VM beside QEMU, as the benchmark starts them (split_vm_hosts.hpp).
//
//   pager FILE                                          as `yado pager`
//   memory ADDRESS PORT IDENTITY STORE HOST PAGES       a memory server: mutual TLS on the host's link, images in the directory STORE
//
// Descriptor 3 of a memory server is a socket: it says "ok" when it listens, answers every line by how many pages of its images it
// has not read yet, and ends with it.

#include <csignal>
#include <cstdlib>
#include <string_view>

#include <unistd.h>

#include "os/file.hpp"
#include "pager/memory_server.hpp"
#include "pager/service.hpp"

namespace yado::bench {
namespace {

constexpr int socket_descriptor = 3;

struct MemoryHost {
  std::string address;
  std::uint16_t port = 0;
  std::filesystem::path identity, store;
  std::string host;
  std::uint64_t pages = 0;
};

Status serve(const MemoryHost& wanted) {
  const os::Fd socket(socket_descriptor);
  YADO_ASSIGN(const wire::Identity identity, wire::Identity::load(wanted.identity), "memory server");
  pager::MemoryServer server({.capacity_pages = wanted.pages, .archive = std::make_shared<pager::DirectoryArchive>(wanted.store, wanted.host), .admits = {}});
  YADO_TRY(server.listen_tls(wanted.address, wanted.port, identity), "memory server");
  YADO_TRY(os::write_all(socket, "ok\n"), "memory server");
  for (char asked = 0; ::read(socket.get(), &asked, 1) == 1;) {
    std::uint64_t left = 0;
    for (const auto& session : server.sessions()) left += session.stats.disk_pages;
    YADO_TRY(os::write_all(socket, fmt::format("{}\n", left)), "memory server");
  }
  return {};
}

}  // namespace

int main_of(int count, char** arguments) {
  const std::string_view role = count > 1 ? arguments[1] : "";
  if (role == "pager" && count == 3) return pager::run_service(arguments[2]);
  if (role != "memory" || count != 8) return 2;
  ::signal(SIGPIPE, SIG_IGN);
  const Status served = serve({.address = arguments[2], .port = static_cast<std::uint16_t>(std::atoi(arguments[3])), .identity = arguments[4],
                               .store = arguments[5], .host = arguments[6], .pages = std::strtoull(arguments[7], nullptr, 10)});
  if (served) return 0;
  fmt::print(stderr, "{}\n", served.error().text());
  return 1;
}

}  // namespace yado::bench

int main(int count, char** arguments) { return yado::bench::main_of(count, arguments); }
