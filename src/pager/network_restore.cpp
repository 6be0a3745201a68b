// What the memory is made of at first: an image, in parts on this host and others, or sessions that are inherited.

#include <algorithm>
#include <iterator>
#include <limits>

#include "pager/network.hpp"

namespace yado::pager {
namespace asio = boost::asio;
namespace fs = std::filesystem;
namespace {

constexpr std::uint64_t most_pages_of_run = std::numeric_limits<std::uint32_t>::max();

image::PageSet newest_in(const image::PageChain& chain, const std::vector<fs::path>& parts) {
  std::vector<image::PageRange> pages;
  for (const image::PagePart* part : chain.parts())
    if (std::ranges::find(parts, fs::path(part->name())) != parts.end()) std::ranges::copy(chain.newest_in(*part), std::back_inserter(pages));
  return image::normalised(std::move(pages));
}

}  // namespace

template <class T, class Call>
std::future<Result<T>> Network::ask(std::size_t server, Call call) {
  auto answer = std::make_shared<std::promise<Result<T>>>();
  auto future = answer->get_future();
  asio::post(io_, [link = servers_->members()[server].link, call = std::move(call), answer] {
    call(*link, [answer](Result<T> told) { answer->set_value(std::move(told)); });
  });
  return future;
}

Result<std::shared_ptr<const image::PageChain>> Network::open_chain() const {
  std::vector<std::vector<image::PagePart>> images;
  for (const auto& directories : config_.image) {
    auto& parts = images.emplace_back();
    for (const fs::path& directory : directories) {
      const bool here = fs::exists(directory / "pages.log");
      YADO_ASSIGN(auto part, image::PagePart::open(directory, here ? image::PagePart::Log::here : image::PagePart::Log::elsewhere, directory.native()), directory.native());
      parts.push_back(std::move(part));
    }
  }
  // Shares that other hosts keep are asked of them; of a chain the indices of all must be here.
  const auto coverage = images.size() == 1 ? image::PageChain::Coverage::some : image::PageChain::Coverage::whole;
  YADO_ASSIGN(auto chain, image::PageChain::make(std::move(images), coverage), "chain");
  if (chain.guest_pages() != pages())
    return fail(Errc::conflict, "it is of a memory of {} pages, this one has {}", chain.guest_pages(), pages());
  return std::make_shared<const image::PageChain>(std::move(chain));
}

/// Every page must be had from somebody.
Status Network::adopt() {
  // All hosts at once, this one among them.
  const auto& members = servers_->members();  // nobody changes them yet
  std::vector<std::future<Result<std::uint64_t>>> loading(members.size());
  for (std::size_t i = 0; i < members.size(); ++i)
    loading[i] = ask_to_load(i);
  PageBits had(pages());
  const auto runs = image_->held();
  for (const KindRun& run : runs) had.set({run.first, run.pages});
  run([&] {
    memory_->adopt(runs, *image_number_);
    return true;
  });
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (!loading[i].valid()) continue;
    const std::string where = fmt::format("memory on {}: ", members[i].told.host);
    YADO_TRY(loading[i].get(), where + "load");
    YADO_TRY(list_of(i, had), where + "list");
  }
  if (had.count() != pages()) {
    PageNumber page = 0;
    while (had.test(page)) ++page;
    return fail(Errc::not_found, "{} pages of it, from page {} on, are on none of these hosts", pages() - had.count(), page);
  }
  return {};
}

/// What a server holds of the memory, once an image was loaded there, or of a session that was inherited: it says so in its list.
Status Network::list_of(std::size_t server, PageBits& had) {
  for (PageNumber from = 0; from < pages();) {
    YADO_ASSIGN(const auto runs, ask<std::vector<KindRun>>(server, [from](ServerLink& link, auto told) { link.list(from, told); }).get(), "list");
    if (runs.empty()) break;
    for (const KindRun& one : runs) had.set({one.first, one.pages});
    run([&] {
      memory_->adopt(runs, server);
      return true;
    });
    from = runs.back().first + runs.back().pages;
  }
  return {};
}

/// Answered when all that is to be had from it is loaded: of a chain the pages whose newest record is in one of its logs. Nothing: not asked.
std::future<Result<std::uint64_t>> Network::ask_to_load(std::size_t server) {
  const ServiceConfig::Server& saved = servers_->members()[server].told;
  std::vector<PageRun> wanted;
  for (const image::PageRange& range : newest_in(*chain_, saved.parts))
    for (std::uint64_t at = range.begin(); at < range.end(); at += most_pages_of_run)
      wanted.push_back({at, static_cast<std::uint32_t>(std::min(most_pages_of_run, range.end() - at))});
  if (saved.load.empty() || (wanted.empty() && !saved.parts.empty())) return {};
  return ask<std::uint64_t>(server, [names = saved.load, wanted = std::move(wanted)](ServerLink& link, auto told) { link.load(names, wanted, told); });
}

}  // namespace yado::pager
