#include "program.hpp"

#include <csignal>
#include <cstdlib>

#include <unistd.h>

#include "os/file.hpp"

extern char** environ;

namespace yado::bench {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kept_lines = 1000;
constexpr auto end_limit = 30s;

std::vector<std::string> own_environment() {
  std::vector<std::string> all;
  for (char** entry = environ; *entry; ++entry) all.emplace_back(*entry);
  return all;
}

}  // namespace

Program::Program(os::Process process, os::Fd output, std::string name)
    : process_(std::move(process)), output_(std::move(output)), name_(std::move(name)), reader_([this] { read_output(); }) {}

Result<std::unique_ptr<Program>> Program::start(std::vector<std::string> arguments) {
  const std::string name = fs::path(arguments[0]).filename();
  YADO_ASSIGN(os::Pipe pipe, os::make_pipe(), name);
  os::Spawn spawn;
  spawn.arguments = std::move(arguments);
  spawn.environment = own_environment();
  spawn.standard_output = spawn.standard_error = pipe.write.get();
  spawn.death_signal = SIGTERM;
  YADO_ASSIGN(os::Process process, os::spawn(spawn), name);
  return std::unique_ptr<Program>(new Program(std::move(process), std::move(pipe.read), name));
}

void Program::read_output() {
  std::string text;
  char piece[4096];
  for (;;) {
    const ssize_t bytes = ::read(output_.get(), piece, sizeof piece);
    if (bytes < 0 && errno == EINTR) continue;
    const std::lock_guard lock(mutex_);
    if (bytes <= 0) {
      if (!text.empty()) lines_.push_back(text);
      closed_ = true;
      changed_.notify_all();
      return;
    }
    text.append(piece, static_cast<std::size_t>(bytes));
    for (std::size_t end; (end = text.find('\n')) != std::string::npos; text.erase(0, end + 1)) {
      lines_.push_back(text.substr(0, end));
      if (lines_.size() > kept_lines) lines_.pop_front(), ++forgotten_;
    }
    changed_.notify_all();
  }
}

Result<std::string> Program::wait_for_line(const std::string& prefix) {
  std::unique_lock lock(mutex_);
  std::uint64_t seen = 0;
  std::string found;
  changed_.wait(lock, [&] {
    for (seen = std::max(seen, forgotten_); seen < forgotten_ + lines_.size() && found.empty(); ++seen)
      if (lines_[seen - forgotten_].starts_with(prefix)) found = lines_[seen - forgotten_];
    return !found.empty() || closed_;
  });
  if (!found.empty()) return found;
  lock.unlock();
  return fail(Errc::unavailable, "{} ended. Its last words:\n{}", name_, last_lines());
}

std::string Program::last_lines() {
  const std::lock_guard lock(mutex_);
  std::string text;
  for (std::size_t i = lines_.size() > 12 ? lines_.size() - 12 : 0; i < lines_.size(); ++i) text += "  " + lines_[i] + "\n";
  return text;
}

void Program::end() {
  if (process_.running()) {
    (void)process_.pidfd().send(SIGTERM);
    auto ended = process_.wait(end_limit);
    if (!ended || !*ended) process_.kill();
  }
  if (reader_.joinable()) reader_.join();
}

Result<std::string> run_program(std::vector<std::string> arguments) {
  const std::string name = arguments[0];
  YADO_ASSIGN(os::Pipe pipe, os::make_pipe(), name);
  os::Spawn spawn;
  spawn.arguments = std::move(arguments);
  spawn.environment = own_environment();
  spawn.standard_output = spawn.standard_error = pipe.write.get();
  spawn.death_signal = SIGTERM;
  YADO_ASSIGN(os::Process process, os::spawn(spawn), name);
  pipe.write.reset();
  std::string text;
  char piece[4096];
  for (ssize_t bytes; (bytes = ::read(pipe.read.get(), piece, sizeof piece)) != 0;) {
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0) return fail_errno("read the output of " + name);
    text.append(piece, static_cast<std::size_t>(bytes));
  }
  YADO_ASSIGN(const auto ended, process.wait(std::nullopt), name);
  if (!ended || !ended->success()) return fail(Errc::internal, "{}: {}:\n{}", name, ended ? ended->text() : "", text);
  return text;
}

Status run_gnuplot(const fs::path& script, const fs::path& svg, const std::map<std::string, std::string>& files) {
  std::string directory = (fs::temp_directory_path() / "yado-plot.XXXXXX").native();
  if (!::mkdtemp(directory.data())) return fail_errno("make a directory for gnuplot's data");
  struct Sweep {
    fs::path path;
    ~Sweep() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
  } const sweep{directory};
  for (const auto& [name, content] : files) YADO_TRY(os::replace_text(sweep.path / name, content), "gnuplot");
  std::error_code error;
  fs::create_directories(svg.parent_path(), error);
  const std::string variables = fmt::format("directory='{}'; output='{}'", directory, svg.native());
  YADO_TRY(run_program({"/usr/bin/gnuplot", "-e", variables, script.native()}), "gnuplot");
  return {};
}

}  // namespace yado::bench
