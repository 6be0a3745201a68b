#include "workload/vm/command_line.hpp"

#include <algorithm>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/units.hpp"
#include "image/temporary_directory.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

class CommandLineTest : public ::testing::Test {
 protected:
  CommandLineTest() {
    spec_.name = "a,b";
    spec_.kernel = "/k";
    spec_.memory_bytes = 256_MiB;
  }
  std::vector<std::string> built() { return build({.spec = spec_, .qemu = qemu_, .machine = "pc-q35-7.2", .base_formats = formats_, .layers = layers_, .network_card = spec_.mac.has_value()}); }
  static std::string after(const std::vector<std::string>& all, const std::string& option) {
    const auto found = std::find(all.begin(), all.end(), option);
    return found == all.end() || found + 1 == all.end() ? "" : *(found + 1);
  }
  fs::path file(const std::string& name) {
    image::put_file(directory_.path() / name, "x");
    return directory_.path() / name;
  }

  VmSpec spec_;
  Qemu qemu_;
  std::vector<DiskFormat> formats_;
  std::vector<std::vector<fs::path>> layers_;
  image::TemporaryDirectory directory_;
};

TEST_F(CommandLineTest, NothingIsThereThatWasNotAskedFor) {
  const auto all = built();
  EXPECT_EQ(all[0], qemu_.system);
  EXPECT_THAT(all, Contains("-nodefaults"));
  EXPECT_THAT(all, Contains("-no-user-config"));
  EXPECT_THAT(after(all, "-sandbox"), HasSubstr("on"));
  EXPECT_THAT(all, Not(Contains("-netdev")));
  EXPECT_THAT(all, Not(Contains("-blockdev")));
  EXPECT_THAT(all, Not(Contains("-incoming")));
  EXPECT_EQ(after(all, "-name"), "guest=a,,b,debug-threads=on");
}

TEST_F(CommandLineTest, MemoryIsASharedFileOfADescriptor) {
  const auto all = built();
  const auto object = std::find_if(all.begin(), all.end(), [](const std::string& text) { return text.find("memory-backend-file") != std::string::npos; });
  ASSERT_NE(object, all.end());
  EXPECT_THAT(*object, HasSubstr(R"("mem-path":"/proc/self/fd/6")"));
  EXPECT_THAT(*object, HasSubstr(R"("share":true)"));
  EXPECT_THAT(*object, HasSubstr(R"("size":268435456)"));
  EXPECT_EQ(after(all, "-m"), "256M");
  EXPECT_THAT(after(all, "-machine"), HasSubstr("memory-backend=ram"));
}

TEST_F(CommandLineTest, TheAcceleratorIsTheOneThatWasChosen) {
  EXPECT_THAT(after(built(), "-machine"), HasSubstr("pc-q35-7.2,accel=tcg"));
  EXPECT_EQ(after(built(), "-cpu"), "max");
  qemu_.accelerator.kind = Accelerator::kvm;
  EXPECT_THAT(after(built(), "-machine"), HasSubstr("accel=kvm"));
  EXPECT_EQ(after(built(), "-cpu"), "host");
}

TEST_F(CommandLineTest, ADiskIsLayersOnAReadOnlyBaseWhateverItsPath) {
  spec_.disks = {"/base,with\"odd name"};
  formats_ = {DiskFormat::raw};
  layers_ = {{"/i/disk-0.qcow2", "/i/disk-0.3.qcow2"}};
  const auto all = built();
  const std::string base = after(all, "-blockdev");
  EXPECT_THAT(base, HasSubstr(R"("filename":"/base,with\"odd name")"));
  EXPECT_THAT(base, HasSubstr(R"("read-only":true)"));
  EXPECT_THAT(base, HasSubstr(R"("driver":"raw")"));
  EXPECT_THAT(all, Contains(HasSubstr(R"("backing":"base-0")")));
  EXPECT_THAT(all, Contains(HasSubstr(R"("backing":"disk-0")")));
  EXPECT_THAT(all, Contains(HasSubstr("virtio-blk-pci,drive=disk-0.3,")));
}

TEST_F(CommandLineTest, WithoutAKernelTheFirstDiskIsBooted) {
  spec_.disks = {"/a", "/b"};
  formats_ = {DiskFormat::raw, DiskFormat::qcow2};
  layers_ = {{"/i/disk-0.qcow2"}, {"/i/disk-1.qcow2"}};
  EXPECT_THAT(built(), Not(Contains(HasSubstr("bootindex"))));
  spec_.kernel.clear();
  EXPECT_THAT(built(), Contains(HasSubstr("drive=disk-0,addr=0x10,bootindex=0")));
  EXPECT_THAT(built(), Contains("virtio-blk-pci,drive=disk-1,addr=0x11"));
  EXPECT_THAT(built(), Not(Contains("-kernel")));
}

TEST_F(CommandLineTest, ANetworkCardHasItsAddressAndTheTapsDescriptor) {
  spec_.mac = net::Mac{{2, 0, 0, 0, 0, 9}};
  const auto all = built();
  EXPECT_EQ(after(all, "-netdev"), "tap,id=net0,fd=7,vhost=off");
  EXPECT_THAT(all, Contains(HasSubstr("mac=02:00:00:00:00:09")));
}

TEST_F(CommandLineTest, WhatIsWrongWithASpecIsSaid) {
  spec_.kernel = file("kernel");
  EXPECT_TRUE(check(spec_).has_value());
  const auto code = [&](auto change) {
    VmSpec changed = spec_;
    change(changed);
    const Status checked = check(changed);
    return checked ? Errc::internal : checked.error().code;
  };
  EXPECT_EQ(code([](VmSpec& s) { s.memory_bytes = 0; }), Errc::invalid_argument);
  EXPECT_EQ(code([](VmSpec& s) { s.memory_bytes = 1_MiB; }), Errc::invalid_argument);
  EXPECT_EQ(code([](VmSpec& s) { s.vcpus = 0; }), Errc::invalid_argument);
  EXPECT_EQ(code([](VmSpec& s) { s.kernel.clear(); }), Errc::invalid_argument);
  EXPECT_EQ(code([](VmSpec& s) { s.kernel = "relative"; }), Errc::invalid_argument);
  EXPECT_EQ(code([](VmSpec& s) { s.kernel = "/no/such"; }), Errc::not_found);
  EXPECT_EQ(code([](VmSpec& s) { s.initramfs = "/no/such"; }), Errc::not_found);
  EXPECT_EQ(code([](VmSpec& s) { s.disks = {"/no/such"}; }), Errc::not_found);
  EXPECT_EQ(code([](VmSpec& s) { s.disks.assign(99, "/no/such"); }), Errc::invalid_argument);
}

}  // namespace
}  // namespace yado::vm
