#pragma once
// For tests of guests whose memory is split: real QEMU, real pager, real memory servers; a guest that checks every word.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <csignal>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/testing.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "pager/image_archive.hpp"
#include "pager/memory_server.hpp"
#include "workload/vm/testing.hpp"

namespace yado::vm::testing {

namespace fs = std::filesystem;


inline constexpr std::uint64_t memory_bytes = 128_MiB;
inline constexpr unsigned pattern_mib = 48;

/// Tests whose name has "Process" are left out under tsan (./run): they fork.
class PagedVmTest : public ::testing::Test {
 protected:
  struct Host {
    std::string name;
    std::unique_ptr<pager::MemoryServer> server;
    std::string socket() const { return path.native(); }
    fs::path path;
  };

  void SetUp() override {
    if (const std::string reason = why_not(); !reason.empty()) GTEST_SKIP() << reason;
    for (const char* name : {"h2", "h3"}) add_host(name);
  }
  void TearDown() override {
    vm_.reset();
    hosts_.clear();
    if (IsSkipped()) return;
    EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "a child is left";
  }

  void add_host(const std::string& name) {
    Host& host = hosts_[name];
    host.name = name;
    host.path = directory_.path() / (name + ".sock");
    pager::MemoryServer::Options options{.capacity_pages = 4 * memory_bytes / 4096};
    options.archive = std::make_shared<pager::DirectoryArchive>(directory_.path() / "store" / name, name);
    host.server = std::make_unique<pager::MemoryServer>(std::move(options));
    ASSERT_OK(host.server->listen_unix(host.socket(), 0600));
  }

  Place place(const std::string& name, std::uint64_t local, const std::vector<std::string>& over, unsigned copies = 1) {
    Place made{.directory = directory_.path() / name, .cgroup = fmt::format("yado-test/{}-{}", directory_.path().filename().native(), name)};
    fs::create_directories(made.directory);
    Paging paging{.program = {YADO_PAGER_PROGRAM}};
    paging.config.local_bytes = local;
    paging.config.copies = copies;
    paging.config.session = name;
    paging.config.epoch = ++epoch_;
    for (const std::string& host : over)
      paging.config.servers.push_back({.host = host, .unix_path = hosts_[host].socket(), .quota_bytes = memory_bytes});
    made.paging = paging;
    return made;
  }
  virtual VmSpec spec() const {
    VmSpec made = verifier(memory_bytes, pattern_mib);
    made.disks = disks_;
    return made;
  }

  void boot(const Place& where) {
    auto started = Vm::start(spec(), where, qemu());
    ASSERT_OK(started);
    vm_.emplace(std::move(*started));
    const auto filled = vm_->console().wait_for("GUEST filled", hang);
    ASSERT_OK(filled);
  }
  /// An image of it: device-state, disk and this host's share below `directory`, the others in the stores of their hosts.
  struct Image {
    std::string name;
    Saved saved;
    image::CutId cut;
    std::vector<MemoryShare> shares;
    image::CutId base_cut;
    std::vector<std::vector<fs::path>> chain;  ///< of every image of the chain the parts of pages, all of them
    fs::path directory;
    std::uint64_t bytes_per_second = 0;  ///< that it may be written at; 0: as the pager is configured
    std::vector<fs::path> disks_below = {};  ///< of the images that its disks lie on, the oldest first
    ImageParts parts() const { return {directory / "device-state", directory / "disk", saved.properties, disks_below}; }
    void lie_on(const Image& base) {
      disks_below = base.disks_below;
      disks_below.push_back(base.directory / "disk");
    }
  };
  void checkpoint(Image& image, const Image* base = nullptr) {
    image.directory = directory_.path() / image.name;
    for (const char* part : {"device-state", "disk", "memory"}) fs::create_directories(image.directory / part);
    image.cut = image::CutId::of(image.name);
    PagedMemory memory({.control = vm_->pager(), .part = image.directory / "memory", .name = image.name, .cut = image.cut,
                        .base_cut = base ? base->cut : image::CutId(), .base = base ? base->name : "", .bytes_per_second = image.bytes_per_second, .progress = {}});
    auto saved = vm_->save(image.directory / "device-state", image.directory / "disk", memory);
    ASSERT_OK(saved);
    image.saved = std::move(*saved);
    ASSERT_OK(memory.keep());
    ASSERT_OK(vm_->kept(image.saved, image.cut.hex()));
    if (image.saved.disks_are_delta) image.lie_on(*base);
    image.shares = memory.shares();
    image.base_cut = memory.base_cut();
    if (base) image.chain = base->chain;
    auto& parts = image.chain.emplace_back(std::vector<fs::path>{image.directory / "memory"});
    for (const MemoryShare& share : image.shares)
      if (!share.host.empty()) parts.push_back(share_of(image.name, share.host));
  }
  fs::path share_of(const std::string& image, const std::string& host) const {
    return directory_.path() / "store" / host / (image + "." + host) / ("pages-" + host);
  }
  void restore(const Image& image, Place where) {
    PagedMemory::Options as;
    as.cut = image.cut;
    PagedMemory memory(std::move(as));
    auto restored = Vm::restore(spec(), where, qemu(), image.parts(), memory);
    ASSERT_OK(restored);
    vm_.emplace(std::move(*restored));
  }
  void expect_flawless() {
    const auto verdict = verify(*vm_);
    ASSERT_OK(verdict);
    EXPECT_TRUE(flawless(*verdict)) << ::testing::PrintToString(*verdict);
  }
  /// A number of the pager's figures; none: it has ended.
  std::optional<std::uint64_t> figure(const std::string& name) {
    const auto answer = ask_pager(vm_->pager(), R"({"do":"figures"})");
    const std::string key = "\"" + name + "\":";
    const std::size_t at = answer ? answer->find(key) : std::string::npos;
    if (at == std::string::npos) return std::nullopt;
    return std::strtoull(answer->c_str() + at + key.size(), nullptr, 10);
  }
  void wait_until_redundant() {
    for (auto missing = figure("pages_without_redundancy"); missing != 0; missing = figure("pages_without_redundancy"))
      ASSERT_TRUE(missing) << "the pager has ended";
  }
  /// 0, with a failure: it says none.
  pid_t pager_process() {
    const auto file = os::read_text(vm_->pager().parent_path() / "pager.pid");
    EXPECT_OK(file);
    const int process = file ? std::atoi(file->c_str()) : 0;
    EXPECT_GT(process, 1);
    return process > 1 ? process : 0;
  }
  void kill_pager() {
    if (const pid_t process = pager_process()) ::kill(process, SIGKILL);
  }
  std::uint64_t pager_address_space() {
    const auto text = os::read_text(fmt::format("/proc/{}/statm", pager_process()));
    EXPECT_OK(text);
    return text ? std::strtoull(text->c_str(), nullptr, 10) * 4096 : 0;
  }
  os::Fd connected_to_pager() {
    os::Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un where{.sun_family = AF_UNIX, .sun_path = {}};
    vm_->pager().native().copy(where.sun_path, sizeof where.sun_path - 1);
    EXPECT_EQ(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&where), sizeof where), 0);
    return socket;
  }
  /// Lets it write for a while, without asking what the time is.
  void write_a_while(char mode, int looks = 20) {
    ASSERT_OK(vm_->console().send(std::string(1, mode)));
    ASSERT_OK(vm_->console().wait_for("GUEST mode", hang));
    for (int i = 0; i < looks; ++i) {
      ASSERT_OK(vm_->console().send("s"));
      ASSERT_OK(vm_->console().wait_for("GUEST is", hang));
    }
  }

  image::TemporaryDirectory directory_;
  std::map<std::string, Host> hosts_;
  std::vector<fs::path> disks_;  ///< of the guest that is booted next
  std::optional<Vm> vm_;
  std::uint64_t epoch_ = 0;
};

/// Lets a fault happen at one of the numbered moments of a checkpoint.
class Breaking final : public MemoryPart {
 public:
  static constexpr int moments = 6;
  Breaking(MemoryPart& inner, int moment, std::function<void()> fault) : inner_(inner), moment_(moment), fault_(std::move(fault)) {}
  Status before_pause(Brake& brake) override { return with(0, [&] { return inner_.before_pause(brake); }); }
  Status save(const os::Fd& memory, std::uint64_t bytes) override { return with(2, [&] { return inner_.save(memory, bytes); }); }
  Status after_pause() override { return with(4, [&] { return inner_.after_pause(); }); }
  Status load(const os::Fd&, std::uint64_t) override { return {}; }

 private:
  Status with(int first, const std::function<Status()>& step) {
    if (moment_ == first) fault_();
    Status done = step();
    if (moment_ == first + 1) fault_();
    return done;
  }
  MemoryPart& inner_;
  int moment_;
  std::function<void()> fault_;
};

}  // namespace yado::vm::testing
