// A memory server as a process of its own, for tests that kill it: SOCKET IMAGES HOLDER PAGES. It says "ok" and lives until its
// standard input ends.
#include <cstdlib>
#include <unistd.h>

#include "pager/memory_server.hpp"

int main(int count, char** arguments) {
  if (count != 5) return 2;
  yado::pager::MemoryServer server({.capacity_pages = std::strtoull(arguments[4], nullptr, 10),
                                    .archive = std::make_shared<yado::pager::DirectoryArchive>(arguments[2], arguments[3])});
  if (!server.listen_unix(arguments[1], 0600)) return 1;
  if (::write(STDOUT_FILENO, "ok", 2) != 2) return 1;
  char ignored;
  while (::read(STDIN_FILENO, &ignored, 1) > 0) {}
  return 0;
}
