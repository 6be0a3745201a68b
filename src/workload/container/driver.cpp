#include "workload/container/driver.hpp"

#include <unistd.h>

#include "workload/container/startup.hpp"

namespace yado::container {
namespace {

Result<std::filesystem::path> part(const workload::PartDirectories& parts, const std::string& name) {
  const auto found = parts.find(name);
  if (found == parts.end()) return fail(Errc::corrupt, "an image of a container has a part \"{}\"; this one has none", name);
  return found->second;
}

class ContainerInstance final : public workload::Instance {
 public:
  ContainerInstance(Container container, Criu criu, std::uint16_t port)
      : container_(std::move(container)), criu_(std::move(criu)), port_(port) {}

  const os::Pidfd& process() const override { return container_.process(); }
  Result<std::optional<os::ExitStatus>> reap() override { return container_.reap(); }
  int output_fd() const override { return container_.output().get(); }
  std::optional<std::string> read_output() override {
    std::string text;
    char buffer[65536];
    // A bound per turn: a program that writes without end must not keep its supervisor from the lease.
    for (int turn = 0; turn < 16; ++turn) {
      const ssize_t n = ::read(container_.output().get(), buffer, sizeof buffer);
      // A program may close its output and live on: an ended pipe would be "readable" for ever.
      if (n == 0 && text.empty()) return std::nullopt;
      if (n <= 0) break;
      text.append(buffer, static_cast<std::size_t>(n));
    }
    return text;
  }
  Status freeze() override { return container_.freeze(); }
  Status thaw(const std::function<void()>& running) override { return container_.thaw(running); }
  Status signal(int number) override { return container_.signal(number); }
  Result<os::ExitStatus> stop(nanoseconds grace) override { return container_.stop(grace); }
  Status kill() override { return container_.cgroup().kill_all(); }
  Result<os::CgroupUse> stats() const override { return container_.stats(); }

  Result<workload::Properties> checkpoint(const workload::PartDirectories& parts, const workload::NewImage&) const override {
    YADO_ASSIGN(const std::filesystem::path criu, part(parts, "criu"), "checkpoint");
    YADO_ASSIGN(const std::filesystem::path disk, part(parts, "disk"), "checkpoint");
    return container_.checkpoint(criu, disk, criu_);
  }
  Result<os::ExitStatus> exec(const std::vector<std::string>& command, const workload::ExecIo& io) const override {
    return container_.exec(command, io);
  }
  Result<workload::StartupTimes> wait_startup(nanoseconds already, nanoseconds limit) const override {
    YADO_ASSIGN(const StartupTimes times,
                container::wait_startup(container_.process(), container_.cgroup(), port_, already, limit), "start-up");
    return workload::StartupTimes{times.listening, times.settled};
  }

 private:
  Container container_;
  Criu criu_;
  std::uint16_t port_;
};

class ContainerDriver final : public workload::Driver {
 public:
  ContainerDriver(ContainerSpec spec, Place place, Criu criu)
      : spec_(std::move(spec)), place_(std::move(place)), criu_(std::move(criu)) {}

  Result<std::unique_ptr<workload::Instance>> start() override {
    YADO_ASSIGN(Container started, Container::start(spec_, place_), "container");
    return std::make_unique<ContainerInstance>(std::move(started), criu_, place_.port);
  }
  Result<std::unique_ptr<workload::Instance>> restore(const workload::ImageParts& image, bool frozen) override {
    ImageParts parts{.properties = image.properties};
    YADO_ASSIGN(parts.criu, part(image.directories, "criu"), "container");
    YADO_ASSIGN(parts.disk, part(image.directories, "disk"), "container");
    YADO_ASSIGN(Container restored, Container::restore(spec_, place_, parts, criu_, frozen), "container");
    return std::make_unique<ContainerInstance>(std::move(restored), criu_, place_.port);
  }
  Status can_checkpoint() const override { return require(criu_); }

 private:
  ContainerSpec spec_;
  Place place_;
  Criu criu_;
};

}  // namespace

std::unique_ptr<workload::Driver> make_driver(ContainerSpec spec, Place place, Criu criu) {
  return std::make_unique<ContainerDriver>(std::move(spec), std::move(place), std::move(criu));
}

}  // namespace yado::container
