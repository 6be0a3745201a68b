#include "pager/image_server.hpp"

#include <boost/asio/io_context.hpp>

#include "image/page_testing.hpp"
#include "image/temporary_directory.hpp"
#include "pager/pager_testing.hpp"

namespace yado::pager {
namespace {

constexpr std::uint64_t image_pages = 1000;

class ImageServerTest : public ::testing::Test {
  image::TemporaryDirectory directory_;
  boost::asio::io_context io_;

 protected:
  /// Every fourth page is zero.
  std::filesystem::path part = image::new_part(directory_.path(), "pages");
  std::unique_ptr<ImageServer> open() {
    std::vector<std::vector<image::PagePart>> images(1);
    auto opened = image::PagePart::open(part);
    EXPECT_TRUE(opened) << opened.error().text();
    images[0].push_back(std::move(*opened));
    auto chain = image::PageChain::make(std::move(images));
    EXPECT_TRUE(chain) << chain.error().text();
    return std::make_unique<ImageServer>(io_.get_executor(), std::make_shared<const image::PageChain>(std::move(*chain)), "the image");
  }
  void SetUp() override {
    auto writer = image::PageWriter::create(part, {.guest_pages = image_pages, .cut = image::cut_number(1), .base_cut = {}});
    ASSERT_TRUE(writer) << writer.error().text();
    {
      auto appender = writer->appender();
      for (PageNumber page = 0; page < image_pages; ++page) {
        const Page content = page_with(page + 1);
        ASSERT_TRUE(page % 4 == 0 ? appender.put_zeros(image::PageNumber{page}, image::Round{0})
                                  : appender.put(image::PageNumber{page}, image::PageContents(content), image::Round{0}));
      }
      ASSERT_TRUE(appender.flush());
    }
    ASSERT_TRUE(writer->finish(image::all_pages(image_pages)));
  }
  /// Answers as they came.
  std::vector<Result<Contents>> answers_of(ImageServer& server, const std::vector<std::vector<PageRun>>& wishes) {
    std::vector<Result<Contents>> answers;
    const auto busy = boost::asio::make_work_guard(io_);
    for (const auto& wish : wishes)
      server.get(wish, [&](Result<std::pair<Batch, Frame>> got) {
        answers.push_back(got ? Result<Contents>(contents_of(got->first.runs, got->first.data)) : std::unexpected(got.error()));
      });
    while (answers.size() < wishes.size()) io_.run_one();
    return answers;
  }
  static Contents expected(const std::vector<PageRun>& runs) {
    Contents all;
    for (const PageRun& run : runs)
      for (PageNumber page = run.first; page < run.first + run.pages; ++page) all[page] = page % 4 == 0 ? 0 : page + 1;
    return all;
  }
};

TEST_F(ImageServerTest, PagesAreAsTheyWereSaved) {
  const auto server = open();
  const std::vector<PageRun> window = {{0, 64}, {100, 1}, {900, 100}};
  for (const auto& answer : answers_of(*server, {window})) EXPECT_EQ(answer.value(), expected(window));
  EXPECT_EQ(server->held().front().kind, PageKind::zero);
}

TEST_F(ImageServerTest, APageThatSomebodyWaitsForDoesNotWaitForWindows) {
  const auto server = open();
  // Far more than is read before the last wish is there.
  std::vector<std::vector<PageRun>> wishes(200, {{0, 250}});
  wishes.push_back({{501, 1}});
  const auto answers = answers_of(*server, wishes);
  EXPECT_EQ(std::ranges::count_if(answers, [](const auto& answer) { return answer.has_value(); }), 201);
  EXPECT_EQ(answers.back().value().size(), 250u) << "the page came last";
}

TEST_F(ImageServerTest, ADamagedPageIsAnErrorOfItsOwnWishAlone) {
  const auto opened = image::PagePart::open(part);
  ASSERT_TRUE(opened);
  image::flip_bit(part / "pages.log", opened->index().find(image::PageNumber{7})->log_offset() + 5, 3);
  const auto server = open();
  const auto answers = answers_of(*server, {{{6, 2}}, {{8, 2}}});
  EXPECT_EQ(answers[0].error().code, Errc::corrupt);
  EXPECT_EQ(answers[1].value(), expected({{8, 2}}));
}

}  // namespace
}  // namespace yado::pager
