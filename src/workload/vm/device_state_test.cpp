#include "workload/vm/device_state.hpp"

#include <csignal>
#include <cstring>
#include <filesystem>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>

#include "base/testing.hpp"
#include "base/units.hpp"
#include "image/small_disk.hpp"
#include "image/temporary_directory.hpp"
#include "os/file.hpp"
#include "workload/vm/sockets.hpp"

namespace yado::vm {
namespace {

constexpr nanoseconds hang = 30s;
constexpr std::size_t state_bytes = 2_MiB;  // more than a socket holds

/// QEMU whose migration thread is faster than its answer to `migrate`: once in some 400 checkpoints with the real one.
class HastyQemu {
 public:
  HastyQemu() {
    SocketPair pair = make_socket_pair().value();
    theirs_ = std::move(pair.theirs);
    serving_ = std::thread([this] { serve(); });
    qmp_.emplace(Qmp::open(std::move(pair.ours), hang).value());
  }
  ~HastyQemu() {
    qmp_.reset();
    serving_.join();
  }
  Result<std::uint64_t> save(const std::filesystem::path& file) {
    YADO_ASSIGN(DeviceStateSaving saving, DeviceStateSaving::prepare(*qmp_, file, hang), "prepare");
    return saving.save(hang);
  }

 private:
  void say(const std::string& line) const { (void)os::write_all(theirs_, line + "\r\n"); }

  void serve() {
    say(R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": []}})");
    os::Fd stream;
    for (;;) {
      const std::string command = read_line(stream);
      const std::size_t at = command.find("\"id\":");
      if (at == std::string::npos) return;
      if (command.find("\"migrate\"") != std::string::npos) {
        const bool all = os::write_all(stream, std::string(state_bytes, 'x')).has_value();
        stream.reset();
        say(fmt::format(R"({{"event": "MIGRATION", "data": {{"status": "{}"}}, "timestamp": {{"seconds": 5, "microseconds": 7}}}})", all ? "completed" : "failed"));
      }
      say(fmt::format(R"({{"return": {{}}, "id": {}}})", std::strtoull(command.c_str() + at + 5, nullptr, 10)));
    }
  }
  /// With the descriptor that may come with it.
  std::string read_line(os::Fd& descriptor) const {
    std::string line;
    for (char c = 0; c != '\n';) {
      iovec space{&c, 1};
      alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
      msghdr message{};
      message.msg_iov = &space;
      message.msg_iovlen = 1;
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      if (::recvmsg(theirs_.get(), &message, MSG_CMSG_CLOEXEC) != 1) return {};
      if (const cmsghdr* header = CMSG_FIRSTHDR(&message)) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
        descriptor = os::Fd(fd);
      }
      line += c;
    }
    return line;
  }

  os::Fd theirs_;
  std::thread serving_;
  std::optional<Qmp> qmp_;
};

TEST(DeviceStateTest, IsReadAlsoBeforeQemuHasAnswered) {
  const image::TemporaryDirectory directory;
  const auto file = directory.path() / "state";
  const auto bytes = HastyQemu().save(file);
  ASSERT_OK(bytes);
  EXPECT_EQ(*bytes, state_bytes);
  EXPECT_EQ(std::filesystem::file_size(file), state_bytes);
}

TEST(DeviceStateTest, WithoutRoomForItNobodyIsHeldUp) {
  const image::TemporaryDirectory directory;
  const auto code = image::on_a_small_disk(directory.path(), "1m", [&] {
    ::signal(SIGPIPE, SIG_IGN);  // as QEMU does
    const auto bytes = HastyQemu().save(directory.path() / "state");
    return !bytes && bytes.error().code == Errc::no_space ? 0 : 1;
  });
  if (!code) GTEST_SKIP() << "no right to mount a tmpfs";
  EXPECT_EQ(*code, 0);
}

}  // namespace
}  // namespace yado::vm
