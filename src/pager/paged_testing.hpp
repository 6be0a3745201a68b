#pragma once
// For tests only, and only as root: the program `yado-paged` (tests/guest/paged.c) with a memory file and the hook in it, and page servers in this process.

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <gtest/gtest.h>
#include <map>
#include <sys/mman.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

#include "os/process.hpp"
#include "pager/pager.hpp"

namespace yado::pager::testing {

/// A memory server without a connection. Everything on the thread of its executor.
class MapServer : public PageServer {
 public:
  explicit MapServer(boost::asio::any_io_executor executor, std::string name = "map") : executor_(std::move(executor)), name_(std::move(name)) {}
  void get(std::vector<PageRun> runs, Got got) override {
    std::size_t wanted = 0;
    for (const PageRun& run : runs) wanted += run.pages;
    if (hold_ && wanted > 1) return held_gets_.emplace_back(wanted, [this, runs = std::move(runs), got = std::move(got)]() mutable { get(std::move(runs), std::move(got)); }), void();
    boost::asio::post(executor_, [this, runs = std::move(runs), got = std::move(got)] {
      if (dead_) return got(fail(Errc::unavailable, "{} is dead", name_));
      Batch batch;
      auto block = std::shared_ptr<std::byte[]>(new std::byte[most_data_pages * page_bytes]);
      std::byte* at = block.get();
      for (const PageRun& run : runs)
        for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
          const auto found = pages_.find(page);
          if (found == pages_.end()) {
            append(batch.runs, page, PageKind::absent);
          } else if (found->second.empty()) {
            append(batch.runs, page, PageKind::zero);
          } else {
            append(batch.runs, page, PageKind::data);
            at = std::copy(found->second.begin(), found->second.end(), at);
          }
        }
      batch.data = Bytes(block.get(), static_cast<std::size_t>(at - block.get()));
      Frame frame;
      frame.body = batch.data;
      frame.hold = block;
      got(std::pair(std::move(batch), std::move(frame)));
    });
  }
  void put(PutBatch batch, Done done) override {
    boost::asio::post(executor_, [this, batch = std::move(batch), done = std::move(done)] {
      if (dead_) return done(fail(Errc::unavailable, "{} is dead", name_));
      if (refuse_) return done(fail(Errc::no_space, "{} is full", name_));
      for (std::size_t i = 0; i < batch.pages.size(); ++i) {
        std::vector<std::byte>& page = pages_[batch.pages[i]];
        page = batch.contents[i] == nullptr ? std::vector<std::byte>() : std::vector<std::byte>(batch.contents[i], batch.contents[i] + page_bytes);
        if (batch.unchanged) said_unchanged_.emplace_back(batch.pages[i], page);
      }
      done({});
    });
  }
  void drop(std::vector<PageRun> runs, Done done) override {
    boost::asio::post(executor_, [this, runs = std::move(runs), done = std::move(done)] {
      for (const PageRun& run : runs)
        for (PageNumber page = run.first; page < run.first + run.pages; ++page) pages_.erase(page);
      done({});
    });
  }
  bool alive() const override { return !dead_; }
  bool connected() const override { return !dead_; }
  const std::string& name() const override { return name_; }
  void distrust(const Error&) override {}

  void die() { dead_ = true; }
  void refuse(bool yes) { refuse_ = yes; }
  /// Answers single pages only; the others when it is told not to hold any more.
  void hold(bool yes) {
    hold_ = yes;
    if (!yes)
      for (auto& [pages, get] : std::exchange(held_gets_, {})) get();
  }
  std::size_t held_back() const {
    std::size_t pages = 0;
    for (const auto& [some, get] : held_gets_) pages += some;
    return pages;
  }
  std::size_t held() const { return pages_.size(); }
  const std::map<PageNumber, std::vector<std::byte>>& contents() const { return pages_; }
  /// All that ever came as unchanged since the last cut.
  const std::vector<std::pair<PageNumber, std::vector<std::byte>>>& said_unchanged() const { return said_unchanged_; }

 private:
  boost::asio::any_io_executor executor_;
  std::string name_;
  std::map<PageNumber, std::vector<std::byte>> pages_;
  std::vector<std::pair<PageNumber, std::vector<std::byte>>> said_unchanged_;
  std::vector<std::pair<std::size_t, std::function<void()>>> held_gets_;  ///< with their pages
  bool dead_ = false, refuse_ = false, hold_ = false;
};

/// An io_context with its thread.
struct Network {
  boost::asio::io_context io{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> busy = boost::asio::make_work_guard(io);
  std::thread thread{[this] { io.run(); }};
  ~Network() { stop(); }
  void stop() {
    busy.reset();
    io.stop();
    if (thread.joinable()) thread.join();
  }
  /// Runs it there and waits.
  template <class Body>
  auto run(Body body) {
    std::packaged_task<decltype(body())()> task(std::move(body));
    auto result = task.get_future();
    boost::asio::post(io, [&] { task(); });
    return result.get();
  }
};

inline constexpr nanoseconds hang = 120s;  ///< keeps a broken test from hanging; never what a test asserts

/// The paged program, with the hook, waiting to be let go.
class Paged {
 public:
  static Result<Paged> start(unsigned mib) {
    Paged made;
    made.file_ = os::Fd(::memfd_create("paged", MFD_CLOEXEC));
    if (::ftruncate(made.file_.get(), static_cast<off_t>(mib) << 20) != 0) return fail_errno("memory");
    YADO_ASSIGN(const os::Fd hook, hook_library(), "hook");
    int sockets[2], in[2], out[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0 || ::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0)
      return fail_errno("sockets");
    os::Fd ours(sockets[0]);
    const os::Fd theirs(sockets[1]), stdin_end(in[0]), stdout_end(out[1]);
    made.in_ = os::Fd(in[1]);
    made.out_ = os::Fd(out[0]);
    os::Spawn spawn{.arguments = {YADO_PAGED_PROGRAM, "6", std::to_string(mib)},
                    .environment = {"LD_PRELOAD=/proc/self/fd/7", "YADO_PAGES_MEMORY=/proc/self/fd/6", "YADO_PAGES_PAGER=fd:8"}};
    spawn.standard_input = stdin_end.get();
    spawn.standard_output = stdout_end.get();
    spawn.standard_error = STDERR_FILENO;
    spawn.descriptors = {{made.file_.get(), 6}, {hook.get(), 7}, {theirs.get(), 8}};
    YADO_ASSIGN(made.process_, os::spawn(spawn), "paged program");
    YADO_ASSIGN(GuestMemory memory, GuestMemory::take(std::move(ours)), "paged program");
    made.memory_ = std::make_unique<GuestMemory>(std::move(memory));
    return made;
  }
  GuestMemory& memory() { return *memory_; }
  os::Process& process() { return process_; }
  const os::Fd& file() const { return file_; }

  void tell(const std::string& command) {
    const std::string line = command + "\n";
    if (::write(in_.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size())) ADD_FAILURE() << "it does not listen";
  }
  /// The answer to a command; empty: it has ended.
  std::string hear() {
    while (heard_.find('\n') == std::string::npos) {
      char text[200];
      const ssize_t n = ::read(out_.get(), text, sizeof text);
      if (n <= 0) return {};
      heard_.append(text, static_cast<std::size_t>(n));
    }
    const std::string line = heard_.substr(0, heard_.find('\n'));
    heard_.erase(0, line.size() + 1);
    return line;
  }
  std::string ask(const std::string& command) {
    tell(command);
    return hear();
  }

 private:
  os::Fd file_, in_, out_;
  os::Process process_;
  std::unique_ptr<GuestMemory> memory_;
  std::string heard_;
};

}  // namespace yado::pager::testing
