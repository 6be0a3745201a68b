// A domain that a real libvirt starts, with our hook in its QEMU and our pager beside it (docs/libvirt.md).
#include <fstream>

#include "os/process.hpp"
#include "workload/vm/console.hpp"
#include "workload/vm/paged_vm_testing.hpp"
#include "workload/vm/sockets.hpp"

namespace yado::vm {
namespace {

using namespace testing;

constexpr const char* daemon_path = "/usr/sbin/libvirtd";
constexpr const char* client_path = "/usr/bin/virsh";
constexpr std::uint64_t local = 64_MiB;

class LibvirtVmProcessTest : public PagedVmTest {
 protected:
  void SetUp() override {
    for (const char* program : {daemon_path, client_path})
      if (::access(program, X_OK) != 0) GTEST_SKIP() << "needs " << program << " (packages libvirt-daemon, libvirt-clients)";
    if (::access(script().c_str(), X_OK) != 0) GTEST_SKIP() << "needs " << script() << ": run it in the sources' directory, or set YADO_SOURCE";
    PagedVmTest::SetUp();
  }
  static fs::path script() {
    const char* source = std::getenv("YADO_SOURCE");
    return fs::absolute(source ? source : ".") / "tests/libvirt/private-libvirtd";
  }
  fs::path here(const char* name) const { return directory_.path() / name; }
  Result<os::Process> start(std::vector<std::string> arguments) {
    os::Spawn spawn{.arguments = std::move(arguments)};
    spawn.environment = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin"};
    spawn.standard_output = spawn.standard_error = STDERR_FILENO;
    spawn.death_signal = SIGKILL;
    return os::spawn(spawn);
  }
  bool virsh(const std::string& command, const std::string& argument = "") {
    std::vector<std::string> all = {client_path, "-q", "-c", "qemu+unix:///system?socket=" + here("libvirt/run/libvirt-sock").native(), command};
    if (!argument.empty()) all.push_back(argument);
    auto ran = start(std::move(all));
    if (!ran) return false;
    const auto ended = ran->wait(hang);
    return ended && *ended && (*ended)->success();
  }
  void write_domain() const {
    const fs::path files = guest("verify");
    std::ofstream(here("domain.xml")) << fmt::format(R"(
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>paged</name>
  <memory unit='MiB'>{0}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{1}/kernel</kernel><initrd>{1}/initramfs</initrd><cmdline>console=ttyS0 quiet verify.mib={2}</cmdline>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <serial type='unix'><source mode='bind' path='{3}'/></serial>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-object'/>
    <qemu:arg value='memory-backend-file,id=paged,size={0}M,mem-path={4},share=on'/>
    <qemu:arg value='-machine'/>
    <qemu:arg value='memory-backend=paged'/>
    <qemu:env name='LD_PRELOAD' value='{5}'/>
    <qemu:env name='YADO_PAGES_MEMORY' value='{4}'/>
    <qemu:env name='YADO_PAGES_PAGER' value='{6}'/>
  </qemu:commandline>
</domain>)", memory_bytes >> 20, files.native(), pattern_mib, here("console").native(), memory_.native(),
                                                      (fs::path(YADO_PAGER_PROGRAM).parent_path() / "libyado_pages.so").native(), here("hook").native());
  }

  fs::path memory_ = fmt::format("/dev/shm/yado-test-{}", ::getpid());
};

TEST_F(LibvirtVmProcessTest, AGuestThatLibvirtStartsIsPagedAndNeverSeesAWrongWord) {
  pager::ServiceConfig config{.control = here("pager"), .memory_bytes = memory_bytes, .local_bytes = local};
  config.session = "libvirt";
  config.epoch = 1;
  config.servers.push_back({.host = "h2", .unix_path = hosts_["h2"].socket(), .quota_bytes = memory_bytes});
  std::ofstream(here("pager.json")) << pager::to_text(config);
  write_domain();
  fs::create_directories(here("libvirt"));
  auto daemon = start({script().native(), here("libvirt").native()});
  ASSERT_OK(daemon);
  auto pager = start({YADO_PAGER_PROGRAM, here("pager.json").native(), here("hook").native()});
  ASSERT_OK(pager);
  while (!virsh("list")) ASSERT_FALSE(daemon->pidfd().ended_within(100ms).value_or(true)) << "libvirtd has ended";
  ASSERT_TRUE(virsh("create", here("domain.xml").native()));

  auto directory = os::open_path(directory_.path(), O_RDONLY | O_DIRECTORY);
  ASSERT_OK(directory);
  auto socket = connect_in(*directory, "console");
  ASSERT_OK(socket);
  Console console(std::move(*socket));
  ASSERT_OK(console.wait_for("GUEST filled", hang));
  for (int i = 0; i < 2; ++i) {
    ASSERT_OK(console.send("v"));
    const auto line = console.wait_for("GUEST verified", hang);
    ASSERT_OK(line);
    EXPECT_TRUE(flawless(values_of(*line))) << *line;
  }
  const auto figures = ask_pager(here("pager"), R"({"do":"figures"})");
  ASSERT_OK(figures);
  EXPECT_EQ(figures->find("\"paged_out\":0,"), std::string::npos) << *figures;
  EXPECT_NE(figures->find("\"paged_out\":"), std::string::npos) << *figures;
  EXPECT_TRUE(virsh("destroy", "paged"));
  EXPECT_TRUE(pager->pidfd().ended_within(hang).value_or(false)) << "it goes with its guest";
  fs::remove(memory_);
}

}  // namespace
}  // namespace yado::vm
