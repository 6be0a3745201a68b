#include "split_testing.hpp"

namespace yado::labtest {

std::unique_ptr<drill::Load> load_of_split_guest(const Endpoint& gate, const std::string& host) {
  drill::LoadOptions options;
  options.address = gate;
  options.host = host;
  options.path = "/";
  options.contains = "virtual machine";
  auto load = drill::Load::start(std::move(options));
  EXPECT_TRUE(load) << load.error().text();
  return load ? std::move(*load) : nullptr;
}

bool answered_after(const drill::Load& load, std::uint64_t epoch) {
  return load.wait_for([&](const drill::Sample& sample) { return sample.correct && sample.epoch > epoch; }, generous).has_value();
}

void expect_all_correct(drill::Load& load) {
  for (const drill::Sample& sample : load.finish()) EXPECT_TRUE(sample.correct) << sample.number << ": " << sample.error;
}

Ended in_guest(const Cluster& cluster, const std::string& guest, const std::string& script) {
  return cluster.yado({"exec", "--control", cluster.control_socket(), guest, "--", "/bin/sh", "-c", script});
}

std::string said_by(const Cluster& cluster, const std::string& guest, const std::string& script) {
  Ended said;
  EXPECT_TRUE(cluster.until([&] { return (said = in_guest(cluster, guest, script)).status == 0; })) << guest << ": " << said.output;
  return said.output;
}

}  // namespace yado::labtest
