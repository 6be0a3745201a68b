#pragma once
// For tests of links to memory servers: what they answer, waited for.

#include <boost/asio/io_context.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "image/temporary_directory.hpp"
#include "pager/pager_testing.hpp"
#include "pager/server_link.hpp"

namespace yado::pager {

inline PutBatch put_batch(const Contents& contents) {
  auto pages = std::make_shared<std::vector<Page>>();
  pages->reserve(contents.size());
  PutBatch batch;
  for (const auto& [page, number] : contents) {
    batch.pages.push_back(page);
    pages->push_back(page_with(number));
    batch.contents.push_back(number == 0 ? nullptr : pages->back().data());
  }
  batch.hold = pages;
  return batch;
}

/// The links' thread is the test's.
class LinkFixture : public ::testing::Test {
 protected:
  ~LinkFixture() override {
    for (const auto& link : links) link->close();
  }
  std::string path(std::string_view name) const { return directory.path() / name; }

  /// Runs until the answer is there.
  template <class T, class Ask>
  Result<T> answer_of(Ask ask) {
    std::optional<Result<T>> answer;
    ask([&](Result<T> got) { answer.emplace(std::move(got)); });
    EXPECT_FALSE(answer) << "an answer never comes from inside the call";
    io.restart();
    while (!answer && io.run_one() > 0) {}
    return answer ? std::move(*answer) : fail(Errc::internal, "nothing answers");
  }
  Status put(ServerLink& link, const Contents& contents) {
    return answer_of<void>([&](auto done) { link.put(put_batch(contents), done); });
  }
  Result<Contents> get(ServerLink& link, std::vector<PageRun> runs) {
    auto got = answer_of<std::pair<Batch, Frame>>([&](auto done) { link.get(runs, done); });
    if (!got) return std::unexpected(got.error());
    return contents_of(got->first.runs, got->first.data);
  }

  image::TemporaryDirectory directory;
  BlockPool blocks{channel_block_bytes};
  boost::asio::io_context io;
  std::vector<std::shared_ptr<ServerLink>> links;  ///< to be closed
};

}  // namespace yado::pager
