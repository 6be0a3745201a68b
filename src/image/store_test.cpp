#include "image/store.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <functional>

#include "image/checksum.hpp"
#include "image/page_testing.hpp"
#include "image/sealed.hpp"
#include "image/small_disk.hpp"
#include "image/temporary_directory.hpp"

namespace yado::image {
namespace {

namespace fs = std::filesystem;

const ImageId id("site-img.3");

Manifest plain_manifest(const ImageId& image = id, std::int64_t created_wall_ms = 1) {
  return {.id = image,
          .workload = WorkloadId("site"),
          .spec_hash = "abc",
          .created_wall_ms = created_wall_ms,
          .parts = {{PartType::criu, "criu", {}}, {PartType::pages, "pages", {}}},
          .properties = {{"pipe", "pipe:[42]"}}};
}

class ImageStoreTest : public ::testing::Test {
 protected:
  ImageStoreTest() { reopen(); }

  void reopen() {
    store_.reset();  // the lock first
    auto opened = Store::open(root());
    ASSERT_TRUE(opened) << opened.error().message;
    store_.emplace(std::move(*opened));
  }

  static void fill(const Draft& draft) {
    auto criu = draft.part_directory("criu");
    ASSERT_TRUE(criu) << criu.error().message;
    put_file(*criu / "core-1.img", "hello");
    put_file(*criu / "deep/er/pagemap.img", std::string(300'000, 'p'));
    auto pages = draft.part_directory("pages");
    ASSERT_TRUE(pages);
    put_file(*pages / "empty", "");
  }

  void make(const ImageId& image = id, std::int64_t created_wall_ms = 1) {
    auto draft = store_->begin(image);
    ASSERT_TRUE(draft) << draft.error().message;
    fill(*draft);
    auto manifest = draft->commit(plain_manifest(image, created_wall_ms));
    ASSERT_TRUE(manifest) << manifest.error().message;
  }

  std::string verify_error() {
    Status status = store_->verify(id);
    if (status) return "(verified)";
    EXPECT_EQ(status.error().code, Errc::corrupt);
    return status.error().message;
  }

  std::vector<std::string> entries() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(root())) names.push_back(entry.path().filename());
    std::ranges::sort(names);
    return names;
  }

  fs::path root() const { return directory_.path() / "images"; }
  fs::path image() const { return root() / id.str(); }

  TemporaryDirectory directory_;
  std::optional<Store> store_;
};

TEST_F(ImageStoreTest, ACommittedImageIsReadVerifiedListedAndOpened) {
  make();
  auto manifest = store_->read(id);
  ASSERT_TRUE(manifest) << manifest.error().message;
  EXPECT_EQ(manifest->parts[0].files,
            (std::vector<File>{{"core-1.img", 5, checksum_of("hello")},
                               {"deep/er/pagemap.img", 300'000, checksum_of(std::string(300'000, 'p'))}}));
  EXPECT_EQ(manifest->parts[1].files, (std::vector<File>{{"empty", 0, checksum_of("")}}));
  EXPECT_EQ(verify_error(), "(verified)");
  EXPECT_EQ(store_->list(), std::vector<Manifest>{*manifest});
  EXPECT_EQ(entries(), (std::vector<std::string>{".lock", "site-img.3"}));
  auto file = store_->open_file(id, "criu", "core-1.img");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(checksum_of(*file)->xxh128, checksum_of("hello"));
}

TEST_F(ImageStoreTest, OnlyItsOwnerCanLookInside) {
  make();
  for (const fs::path& path : {root(), image(), image() / "criu", image() / "manifest.json"})
    EXPECT_EQ(fs::status(path).permissions() & (fs::perms::group_all | fs::perms::others_all), fs::perms::none) << path;
}

TEST_F(ImageStoreTest, AnImageIsCommittedOnce) {
  make();
  EXPECT_EQ(store_->begin(id).error().code, Errc::already_exists);
}

TEST_F(ImageStoreTest, TwoDraftsOfOneImageEndInOneImage) {
  auto first = store_->begin(id);
  auto second = store_->begin(id);
  ASSERT_TRUE(first && second);
  fill(*first);
  fill(*second);
  EXPECT_TRUE(first->commit(plain_manifest()));
  EXPECT_EQ(second->commit(plain_manifest()).error().code, Errc::already_exists);
  EXPECT_EQ(verify_error(), "(verified)");
}

TEST_F(ImageStoreTest, ADraftThatIsNotCommittedLeavesNothing) {
  {
    auto draft = store_->begin(id);
    ASSERT_TRUE(draft);
    fill(*draft);
    EXPECT_EQ(entries().size(), 2U);
    Draft moved = std::move(*draft);
  }
  EXPECT_EQ(entries(), std::vector<std::string>{".lock"});
}

TEST_F(ImageStoreTest, LinksAndDevicesAreNoPartOfAnImage) {
  auto draft = store_->begin(id);
  ASSERT_TRUE(draft);
  fill(*draft);
  fs::create_symlink("/etc/passwd", draft->directory() / "criu/link");
  auto committed = draft->commit(plain_manifest());
  ASSERT_FALSE(committed);
  EXPECT_EQ(committed.error().message, "part criu: link: neither a file nor a directory");
  EXPECT_FALSE(store_->read(id));
}

TEST_F(ImageStoreTest, NamesThatLeaveTheStoreAreRefused) {
  for (const char* name : {"", "..", "../x", "a/b", ".lock", ".draft-x"}) {
    EXPECT_EQ(store_->begin(ImageId(name)).error().code, Errc::invalid_argument) << name;
    EXPECT_EQ(store_->read(ImageId(name)).error().code, Errc::invalid_argument) << name;
    EXPECT_EQ(store_->remove(ImageId(name)).error().code, Errc::invalid_argument) << name;
    EXPECT_EQ(store_->open_file(ImageId(name), "criu", "x").error().code, Errc::invalid_argument) << name;
  }
  auto draft = store_->begin(id);
  ASSERT_TRUE(draft);
  for (const char* part : {"", "..", "a/b", "manifest.json"})
    EXPECT_EQ(draft->part_directory(part).error().code, Errc::invalid_argument) << part;
}

TEST_F(ImageStoreTest, FilesAreOpenedInsideTheImageOnly) {
  make();
  put_file(directory_.path() / "secret", "s");
  fs::create_symlink(directory_.path() / "secret", image() / "criu/link");
  fs::create_symlink("..", image() / "criu/up");
  for (const char* path : {"../manifest.json", "/etc/passwd", "link", "up/manifest.json", "deep", ""})
    EXPECT_EQ(store_->open_file(id, "criu", path).error().code, Errc::invalid_argument) << path;
  EXPECT_EQ(store_->open_file(id, "..", "x").error().code, Errc::invalid_argument);
  EXPECT_EQ(store_->open_file(id, "criu", "missing").error().code, Errc::not_found);
  EXPECT_EQ(store_->open_file(ImageId("other"), "criu", "core-1.img").error().code, Errc::not_found);
}

// Damage, one kind per test: `verify` names the first difference.

TEST_F(ImageStoreTest, ATruncatedFileIsSeen) {
  make();
  fs::resize_file(image() / "criu/deep/er/pagemap.img", 299'999);
  EXPECT_EQ(verify_error(), "image site-img.3: part criu: deep/er/pagemap.img: 299999 bytes instead of 300000");
}

TEST_F(ImageStoreTest, AFlippedBitIsSeen) {
  make();
  put_file(image() / "criu/core-1.img", "hellm");  // 'o' ^ 2
  EXPECT_EQ(verify_error(), "image site-img.3: part criu: core-1.img: checksum differs");
}

TEST_F(ImageStoreTest, AMissingFileIsSeen) {
  make();
  fs::remove(image() / "pages/empty");
  EXPECT_EQ(verify_error(), "image site-img.3: part pages: empty: is missing");
}

TEST_F(ImageStoreTest, AMissingPartIsSeen) {
  make();
  fs::remove_all(image() / "pages");
  EXPECT_EQ(verify_error(), "image site-img.3: part pages: its directory is missing");
}

TEST_F(ImageStoreTest, AFileTooManyIsSeen) {
  make();
  put_file(image() / "criu/stats-restore", "x");
  EXPECT_EQ(verify_error(), "image site-img.3: part criu: stats-restore: not in the manifest");
  fs::remove(image() / "criu/stats-restore");
  put_file(image() / "notes", "x");
  EXPECT_EQ(verify_error(), "image site-img.3: notes: not in the manifest");
}

TEST_F(ImageStoreTest, AFileThatBecameALinkIsSeen) {
  make();
  fs::rename(image() / "criu/core-1.img", directory_.path() / "core-1.img");
  fs::create_symlink(directory_.path() / "core-1.img", image() / "criu/core-1.img");
  EXPECT_EQ(verify_error(), "image site-img.3: part criu: core-1.img: neither a file nor a directory");
}

TEST_F(ImageStoreTest, ADirectoryWithoutAManifestIsNoImageAndInNobodysWay) {
  make();
  fs::remove(image() / "manifest.json");
  EXPECT_EQ(store_->read(id).error().code, Errc::not_found);
  EXPECT_EQ(store_->verify(id).error().code, Errc::not_found);
  EXPECT_TRUE(store_->list().empty());
  make();
  EXPECT_EQ(verify_error(), "(verified)");
}

TEST_F(ImageStoreTest, ADamagedManifestIsCorruptAndNotListed) {
  make();
  make(ImageId("site-img.4"), 2);
  put_file(image() / "manifest.json", "");
  EXPECT_EQ(store_->read(id).error().code, Errc::corrupt);
  EXPECT_EQ(store_->list().size(), 1U);
  EXPECT_TRUE(store_->remove(id)) << "what cannot be read can still be removed";
  EXPECT_FALSE(fs::exists(image()));
}

TEST_F(ImageStoreTest, AnImageInTheDirectoryOfAnotherIsCorrupt) {
  make();
  fs::rename(image(), root() / "site-img.9");
  EXPECT_EQ(store_->read(ImageId("site-img.9")).error().message,
            "image site-img.9: manifest: id: is site-img.3, in the directory of site-img.9");
}

TEST_F(ImageStoreTest, ImagesAreListedOldestFirst) {
  make(ImageId("b"), 2);
  make(ImageId("c"), 1);
  make(ImageId("a"), 2);
  std::vector<std::string> names;
  for (const Manifest& manifest : store_->list()) names.push_back(manifest.id.str());
  EXPECT_EQ(names, (std::vector<std::string>{"c", "a", "b"}));
}

TEST_F(ImageStoreTest, RemovingLeavesNothingAndCanBeRepeated) {
  make();
  EXPECT_TRUE(store_->remove(id));
  EXPECT_TRUE(store_->remove(id));
  EXPECT_EQ(entries(), std::vector<std::string>{".lock"});
}

TEST_F(ImageStoreTest, TheOrderOfUseIsNotOfTheImageAndGoesWithIt) {
  make();
  put_file(store_->use_file(id), "advice");
  EXPECT_EQ(verify_error(), "(verified)");
  put_file(store_->use_file(ImageId("gone-img.1")), "of an image that is not there any more");
  reopen();
  EXPECT_TRUE(fs::exists(store_->use_file(id)));
  EXPECT_FALSE(fs::exists(store_->use_file(ImageId("gone-img.1"))));
  EXPECT_EQ(store_->list().size(), 1u);
  EXPECT_TRUE(store_->remove(id));
  EXPECT_EQ(entries(), std::vector<std::string>{".lock"});
}

// Sparse files, and parts of pages whose index proves the log.

TEST_F(ImageStoreTest, HolesCountAsTheZerosThatTheyAre) {
  auto draft = store_->begin(id);
  ASSERT_TRUE(draft);
  const fs::path disk = *draft->part_directory("criu") / "disk";
  std::string content(5 << 20, '\0');
  content[(3 << 20) + 5] = 'x';
  put_file(disk, "");
  fs::resize_file(disk, content.size());
  std::fstream(disk, std::ios::binary | std::ios::in | std::ios::out).seekp((3 << 20) + 5).put('x');
  auto manifest = draft->commit({.id = id, .workload = WorkloadId("site"), .parts = {{PartType::criu, "criu", {}}}});
  ASSERT_TRUE(manifest) << manifest.error().text();
  const File& file = manifest->parts[0].files.at(0);
  EXPECT_EQ(file.xxh128, checksum_of(content)) << "as if it had been read";
  EXPECT_EQ(file.bytes, content.size());
  EXPECT_LE(file.data_bytes.value_or(file.bytes), 1U << 16);
  EXPECT_EQ(verify_error(), "(verified)");
  // Data where there was a hole is a difference, a hole written out as zeros is none.
  std::fstream(image() / "criu/disk", std::ios::binary | std::ios::in | std::ios::out).write(content.data(), 1 << 20);
  EXPECT_EQ(verify_error(), "(verified)");
  std::fstream(image() / "criu/disk", std::ios::binary | std::ios::in | std::ios::out).seekp(77).put('y');
  EXPECT_EQ(verify_error(), "image site-img.3: part criu: disk: checksum differs");
}

class ImagePagesInStoreTest : public ImageStoreTest {
 protected:
  /// Pages 0 to 9; page 1 is zeros. Slot 3 of the log is dead.
  void make_pages() {
    auto draft = store_->begin(id);
    ASSERT_TRUE(draft);
    auto writer = PageWriter::create(*draft->part_directory("memory"), {.guest_pages = 10, .cut = cut_number(1)});
    ASSERT_TRUE(writer) << writer.error().text();
    PageAppender appender = writer->appender();
    for (std::uint64_t page = 0; page < 10; ++page)
      ASSERT_OK(appender.put(PageNumber{page}, page_of(page == 1 ? 0 : page + 1), 0_round));
    ASSERT_OK(appender.put(4_page, page_of(100), 1_round));
    ASSERT_OK(appender.flush());
    ASSERT_OK(writer->finish(all_pages(10)));
    ASSERT_OK(draft->commit({.id = id, .workload = WorkloadId("vm"), .parts = {{PartType::pages, "memory", {}}}}));
  }
  fs::path log() const { return image() / "memory/pages.log"; }
};

TEST_F(ImagePagesInStoreTest, ALogIsProvedByItsIndex) {
  make_pages();
  auto manifest = store_->read(id);
  ASSERT_TRUE(manifest) << manifest.error().text();
  const File* file = &manifest->parts[0].files.at(1);
  EXPECT_EQ(file->path, "pages.log");
  EXPECT_EQ(file->proved_by, "pages.index");
  EXPECT_EQ(file->xxh128, "");
  EXPECT_EQ(file->bytes, fs::file_size(log()));
  EXPECT_EQ(verify_error(), "(verified)");
}

TEST_F(ImagePagesInStoreTest, EveryLiveRecordIsVerified) {
  make_pages();
  const auto part = PagePart::open(image() / "memory");
  ASSERT_TRUE(part);
  for (const PlacedPage& page : part->in_file_order()) {
    if (page.record.zero()) continue;
    flip_bit(log(), page.record.log_offset() + 4095, 7);
    EXPECT_EQ(verify_error(), fmt::format("image site-img.3: part memory: part memory: page {} (pages.log offset {}): "
                                          "checksum differs",
                                          page.page, page.record.log_offset()));
    flip_bit(log(), page.record.log_offset() + 4095, 7);
  }
  EXPECT_EQ(verify_error(), "(verified)");
}

TEST_F(ImagePagesInStoreTest, WhatNoRecordRefersToMeansNothing) {
  make_pages();
  flip_bit(log(), 3 * page_bytes, 0);
  EXPECT_EQ(verify_error(), "(verified)");
}

TEST_F(ImagePagesInStoreTest, AnIndexThatWasReplacedByAnotherIsSeen) {
  make_pages();
  // Sealed and of the same length, but not the one that the manifest names.
  std::string bytes = read_file(image() / "memory/pages.index");
  bytes.resize(bytes.size() - sizeof(Seal));
  bytes[16] = static_cast<char>(bytes[16] ^ 1);  // another cut
  append_seal(bytes);
  ASSERT_TRUE(PageIndex::from_bytes(bytes));
  put_file(image() / "memory/pages.index", bytes);
  EXPECT_EQ(verify_error(), "image site-img.3: part memory: pages.index: checksum differs");
}

TEST_F(ImagePagesInStoreTest, AShortLogIsSeen) {
  make_pages();
  fs::resize_file(log(), fs::file_size(log()) - 1);
  EXPECT_EQ(verify_error(), "image site-img.3: part memory: pages.log: 40959 bytes instead of 40960");
}

TEST_F(ImagePagesInStoreTest, ALogWithAChecksumOfItsOwnIsStillVerifiedByIt) {
  make_pages();
  // As version 1 wrote it.
  Manifest old = *store_->read(id);
  for (File& file : old.parts[0].files)
    if (!std::exchange(file.proved_by, "").empty()) file.xxh128 = checksum_of(read_file(log()));
  EXPECT_NE(to_json(old).find("\"version\":1,"), std::string::npos);
  put_file(image() / "manifest.json", to_json(old));
  EXPECT_EQ(verify_error(), "(verified)");
  flip_bit(log(), 3 * page_bytes, 0);
  EXPECT_EQ(verify_error(), "image site-img.3: part memory: pages.log: checksum differs");
}

// A copy must be what the manifest that came with it says.

class ImageCopyTest : public ImageStoreTest {
 protected:
  ImageCopyTest() {
    make();
    manifest_ = *store_->read(id);
    EXPECT_TRUE(store_->remove(id));
  }

  std::string commit_error(const std::function<void(const fs::path&)>& damage) {
    auto draft = store_->begin(id);
    if (!draft) return draft.error().message;
    fill(*draft);
    damage(draft->directory());
    const Status status = draft->commit_copy(manifest_);
    EXPECT_EQ(status.has_value(), store_->read(id).has_value());
    return status ? "(committed)" : status.error().message;
  }

  Manifest manifest_;
};

TEST_F(ImageCopyTest, AFaithfulCopyBecomesAnImage) {
  EXPECT_EQ(commit_error([](auto&) {}), "(committed)");
  EXPECT_EQ(verify_error(), "(verified)");
  EXPECT_EQ(store_->read(id), manifest_);
}

TEST_F(ImageCopyTest, AnythingElseDoesNot) {
  EXPECT_EQ(commit_error([](const fs::path& d) { fs::resize_file(d / "criu/core-1.img", 4); }),
            "image site-img.3: part criu: core-1.img: 4 bytes instead of 5");
  EXPECT_EQ(commit_error([](const fs::path& d) { put_file(d / "criu/core-1.img", "hellm"); }),
            "image site-img.3: part criu: core-1.img: checksum differs");
  EXPECT_EQ(commit_error([](const fs::path& d) { fs::remove(d / "pages/empty"); }),
            "image site-img.3: part pages: empty: is missing");
  EXPECT_EQ(commit_error([](const fs::path& d) { put_file(d / "pages/more", ""); }),
            "image site-img.3: part pages: more: not in the manifest");
  EXPECT_EQ(entries(), std::vector<std::string>{".lock"});
}

// A crash between any two steps of commit and of remove, made as the state that it leaves on the disk.

class ImageCrashTest : public ImageStoreTest {
 protected:
  ImageCrashTest() { make(); }

  void crash_leaves(const fs::path& name, const std::function<void(const fs::path&)>& state) {
    fs::rename(image(), root() / name);
    state(root() / name);
    reopen();
  }
};

TEST_F(ImageCrashTest, BeforeTheFirstFile) {
  crash_leaves(".draft-site-img.3-0011223344556677", [](const fs::path& d) {
    fs::remove_all(d);
    fs::create_directory(d);
  });
  EXPECT_EQ(entries(), std::vector<std::string>{".lock"});
}

TEST_F(ImageCrashTest, BetweenTwoFiles) {
  crash_leaves(".draft-site-img.3-0011223344556677", [](const fs::path& d) {
    fs::remove(d / "manifest.json");
    fs::remove_all(d / "pages");
  });
  EXPECT_EQ(entries(), std::vector<std::string>{".lock"});
}

TEST_F(ImageCrashTest, WhileTheManifestIsWritten) {
  crash_leaves(".draft-site-img.3-0011223344556677",
               [](const fs::path& d) { fs::resize_file(d / "manifest.json", 20); });
  EXPECT_EQ(entries(), std::vector<std::string>{".lock"});
}

TEST_F(ImageCrashTest, BeforeTheRename) {
  crash_leaves(".draft-site-img.3-0011223344556677", [](const fs::path&) {});
  EXPECT_EQ(entries(), std::vector<std::string>{".lock"}) << "whole, but nobody was told of it";
  EXPECT_EQ(store_->read(id).error().code, Errc::not_found);
}

TEST_F(ImageCrashTest, AfterTheRename) {
  reopen();
  EXPECT_EQ(verify_error(), "(verified)");
}

TEST_F(ImageCrashTest, WhileItIsRemoved) {
  crash_leaves(".removed-site-img.3-0011223344556677", [](const fs::path& d) { fs::remove_all(d / "criu"); });
  EXPECT_EQ(entries(), std::vector<std::string>{".lock"});
}

// Who owns the store.

TEST_F(ImageStoreTest, ASecondOwnerIsRefusedAndDoesNotSweepTheFirstOnesDrafts) {
  auto draft = store_->begin(id);
  ASSERT_TRUE(draft);
  fill(*draft);
  auto second = Store::open(root());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::conflict);
  EXPECT_TRUE(draft->commit(plain_manifest()));
}

TEST_F(ImageStoreTest, ADeadOwnerHoldsNothing) {
  store_.reset();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto mine = Store::open(root());
    auto draft = mine ? mine->begin(id) : fail(Errc::internal, "no store");
    if (draft) ::kill(::getpid(), SIGKILL);
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  reopen();
  EXPECT_EQ(entries(), std::vector<std::string>{".lock"});
}

TEST_F(ImageStoreTest, AStoreThatCannotBeMadeSaysWhere) {
  put_file(directory_.path() / "file", "");
  auto store = Store::open(directory_.path() / "file");
  ASSERT_FALSE(store);
  EXPECT_NE(store.error().message.find((directory_.path() / "file").native()), std::string::npos);
}

// A tmpfs of 1 MiB is the full disk.
int fill_a_small_disk(const fs::path& root) {
  auto store = Store::open(root);
  if (!store) return 1;
  {
    auto draft = store->begin(id);
    if (!draft) return 2;
    auto part = draft->part_directory("criu");
    if (!part) return 3;
    // Fill it to the last page with the parts' own files, so that the manifest finds no room.
    std::ofstream file(*part / "pages-1.img", std::ios::binary);
    const std::string page(4096, 'p');
    while (file.write(page.data(), 4096).flush()) {
    }
    file.close();
    Manifest manifest = plain_manifest();
    manifest.parts.resize(1);
    manifest.properties["long"] = std::string(100'000, 'x');
    auto committed = draft->commit(manifest);
    if (committed) return 4;
    if (committed.error().code != Errc::no_space) return 5;
    if (store->read(id)) return 6;
  }
  // Nothing is lost and the room is back: the same image, smaller, succeeds.
  auto draft = store->begin(id);
  if (!draft) return 7;
  auto part = draft->part_directory("criu");
  if (!part) return 8;
  put_file(*part / "pages-1.img", "small");
  Manifest manifest = plain_manifest();
  manifest.parts.resize(1);
  if (!draft->commit(manifest)) return 9;
  return store->verify(id) ? 0 : 10;
}

TEST_F(ImageStoreTest, AFullDiskIsAnErrorAndLeavesNoImage) {
  const fs::path small = directory_.path() / "small";
  fs::create_directory(small);
  const auto code = on_a_small_disk(small, "1m", [&] { return fill_a_small_disk(small); });
  if (!code) GTEST_SKIP() << "needs the right to mount a tmpfs";
  EXPECT_EQ(code, 0);
}

}  // namespace
}  // namespace yado::image
