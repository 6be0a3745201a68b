#include "paging_program.hpp"

#include <cerrno>
#include <csignal>
#include <sstream>

#include <sys/mman.h>
#include <unistd.h>

#include "os/file.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;

constexpr int memory_descriptor = 3, hook_descriptor = 4, pager_descriptor = 5;  // in the program
/// A group's accounts hold page tables and the file's index as well (some 4 and 9 bytes a page), and what the kernel books ahead for every CPU.
constexpr std::uint64_t part_for_kernel = 128;

}  // namespace

Result<TouchProgram> TouchProgram::start(std::uint64_t memory_bytes, const std::string& cgroup, vm::PagerProcess* pager) {
  const std::string doing = "start the program";
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (error) return fail_errno(error.value(), doing);
  TouchProgram made;
  made.memory_bytes_ = memory_bytes;
  YADO_ASSIGN(made.cgroup_, os::Cgroup::create(cgroup), doing);
  made.memory_ = os::Fd(::memfd_create("yado-bench-touch", MFD_CLOEXEC));
  if (!made.memory_.valid() || ::ftruncate(made.memory_.get(), static_cast<off_t>(memory_bytes)) < 0) return fail_errno(doing);
  YADO_ASSIGN(os::Pipe in, os::make_pipe(), doing);
  YADO_ASSIGN(os::Pipe out, os::make_pipe(), doing);
  made.in_ = std::move(in.write);
  made.out_ = std::move(out.read);
  os::Spawn spawn{.arguments = {self.parent_path() / "yado-bench-touch", fmt::format("{}", memory_descriptor), fmt::format("{}", memory_bytes >> 20)}};
  spawn.standard_input = in.read.get();
  spawn.standard_output = out.write.get();
  spawn.standard_error = STDERR_FILENO;
  spawn.descriptors = {{made.memory_.get(), memory_descriptor}};
  if (pager) {
    spawn.environment = {fmt::format("LD_PRELOAD=/proc/self/fd/{}", hook_descriptor), fmt::format("YADO_PAGES_MEMORY=/proc/self/fd/{}", memory_descriptor),
                         fmt::format("YADO_PAGES_PAGER=fd:{}", pager_descriptor)};
    spawn.descriptors.emplace_back(pager->library().get(), hook_descriptor);
    spawn.descriptors.emplace_back(pager->hook().get(), pager_descriptor);
  }
  spawn.death_signal = SIGKILL;
  spawn.in_child = [&made] { return made.cgroup_.add(::getpid()); };
  YADO_ASSIGN(made.process_, os::spawn(spawn), doing);
  if (pager) pager->let_go();
  in.read.reset();
  out.write.reset();
  YADO_TRY(made.answer(), doing);
  return made;
}

TouchProgram::~TouchProgram() {
  process_.kill();
  memory_.reset();
  (void)cgroup_.remove();
}

Status TouchProgram::limit(std::uint64_t local_bytes) const {
  YADO_ASSIGN(const os::CgroupUse before, cgroup_.use(), "limit the program's memory");
  return cgroup_.limit({.memory_bytes = before.memory_bytes + local_bytes + memory_bytes_ / part_for_kernel});
}

Result<TouchProgram::Answer> TouchProgram::ask(const std::string& command) {
  YADO_TRY(os::write_all(in_, command + "\n"), command);
  YADO_ASSIGN(Answer said, answer(), command);
  if (said["bad"] != 0) return fail(Errc::corrupt, "{}: the program's memory is WRONG: {} bad words", command, said["bad"]);
  return said;
}

Result<TouchProgram::Answer> TouchProgram::answer() {
  std::string line;
  for (char one = 0;;) {
    const ssize_t n = ::read(out_.get(), &one, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(Errc::application, "the program has ended");
    if (one == '\n') break;
    line += one;
  }
  Answer said;
  std::istringstream words(line);
  for (std::string word; words >> word;)
    if (const std::size_t equals = word.find('='); equals != std::string::npos) said[word.substr(0, equals)] = std::strtod(word.c_str() + equals + 1, nullptr);
  return said;
}

}  // namespace yado::bench
