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

}  // namespace yado::labtest
