#include "pager/split_save.hpp"

#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>
#include <cstring>
#include <future>

#include "base/log.hpp"

namespace yado::pager {
namespace asio = boost::asio;

SplitSave::SplitSave(Pager& pager, RemoteMemory& remote, asio::any_io_executor network, std::vector<Server> servers, Owner owner, Options options)
    : pager_(pager), remote_(remote), network_(std::move(network)), servers_(std::move(servers)), owner_(std::move(owner)), options_(std::move(options)),
      pace_(options_.bytes_per_second) {}

SplitSave::~SplitSave() {
  if (fixed_.valid()) fixed_.wait();
  if (!begun_ || kept_) return;
  pager_.end_save(false);
  asio::post(network_, [&remote = remote_] { remote.release_held(); });
  for (const std::size_t server : taking_part_) (void)ask(servers_[server], Operation::abandon, make_name(name_on(servers_[server])));
}

std::future<Result<std::vector<std::byte>>> SplitSave::ask(const Server& server, Operation operation, std::vector<std::byte> body, std::uint16_t flags) {
  auto promise = std::make_shared<std::promise<Result<std::vector<std::byte>>>>();
  auto future = promise->get_future();
  asio::dispatch(network_, [link = server.link, host = server.host, operation, body = std::move(body), flags, promise]() mutable {
    link->request(operation, std::move(body), [promise, host, operation](Result<Frame> frame) {
      if (!frame) return promise->set_value(context(frame.error(), fmt::format("{} of {}", name_of(operation), host)));
      if (frame->header.operation != Operation::done)
        return promise->set_value(fail(Errc::corrupt, "{} of {}: {} instead of DONE", name_of(operation), host, name_of(frame->header.operation)));
      promise->set_value(std::vector<std::byte>(frame->body.begin(), frame->body.end()));
    }, flags);
  });
  return future;
}

SplitSave::Answers SplitSave::ask_all(Operation operation) {
  Answers answers;
  for (const std::size_t server : taking_part_) answers.push_back(ask(servers_[server], operation, make_name(name_on(servers_[server]))));
  return answers;
}

/// Waits for all of them, also after the first error.
Status SplitSave::all_done(Answers& answers) {
  Status all;
  for (auto& answer : answers)
    if (const auto one = answer.get(); !one && all) all = std::unexpected(one.error());
  return all;
}

Pager::SaveSink SplitSave::sink() {
  return [this](PageNumber page, const std::byte* content) -> Status {
    const image::PageNumber number{page};
    const image::Round round{rounds_};
    options_.watch->saved_here();
    if (content == nullptr) return appender_->put_zeros(number, round);
    YADO_TRY(appender_->put(number, image::PageContents(content, page_bytes), round), "save");
    return keep_to_rate(page_bytes);
  };
}

Status SplitSave::keep_to_rate(std::uint64_t bytes) {
  unpaced_ += bytes;
  if (!pace_.limited() || unpaced_ < SavePace::piece_bytes) return {};
  return options_.wait_until(pace_.after(std::exchange(unpaced_, 0), std::chrono::steady_clock::now()));
}

Status SplitSave::begin() {
  YADO_TRY(pager_.begin_save(!options_.base_cut.none()), "checkpoint");
  begun_ = true;
  std::promise<void> dropped;
  asio::post(network_, [&] {
    remote_.drop_duplicates();
    // Who is dead by now has nothing any more; who dies from here on ends this checkpoint.
    for (std::size_t i = 0; i < servers_.size(); ++i)
      if (servers_[i].link && servers_[i].link->alive()) taking_part_.push_back(i);
    dropped.set_value();
  });
  dropped.get_future().wait();
  auto writer = image::PageWriter::create(options_.part, {.guest_pages = pager_.pages(), .cut = options_.cut, .base_cut = options_.base_cut});
  if (!writer) return context(writer.error(), "checkpoint");
  writer_.emplace(std::move(*writer));
  appender_.emplace(writer_->appender());
  return {};
}

Result<SplitSave::Round> SplitSave::round(Pager::Hot hot) {
  // Servers save what they hold once. What comes to them later is mostly on its way back, and FINISH writes only what they own in the end.
  Answers answers;
  for (const std::size_t number : taking_part_)
    if (const Server& server = servers_[number]; rounds_ == 0) {
      const SaveRequest request{name_on(server), options_.cut, options_.base_cut, options_.base, options_.bytes_per_second};
      answers.push_back(ask(server, Operation::save, make_save(request), flags_of(request)));
    }
  const auto here = pager_.save_round(sink(), hot);
  Round sum;
  Status all;
  for (auto& answer : answers) {
    const auto one = answer.get();
    const auto saved = one ? parse_saved(*one) : std::unexpected(one.error());
    if (saved) sum.pages += saved->pages;
    else if (all) all = std::unexpected(saved.error());
  }
  ++rounds_;
  if (!here) return std::unexpected(here.error());
  if (!all) return std::unexpected(all.error());
  sum.pages += here->pages;
  sum.here = here->pages;
  sum.left = here->left;
  return sum;
}

Status SplitSave::fix() {
  YADO_ASSIGN(cut_, pager_.fix_save(), "checkpoint");
  // Who owns what, and that the servers hold on to it, in one go of the network's thread. The workload may run on meanwhile: whatever it changes
  // goes over that thread, and comes behind this.
  auto fixed = std::make_shared<std::promise<Result<Answers>>>();
  fixed_ = fixed->get_future();
  asio::post(network_, [this, fixed] { fixed->set_value(fix_on_servers()); });
  return {};
}

Result<SplitSave::Answers> SplitSave::fix_on_servers() {
  // A copy of what is here may differ from it; evicting the page later "unchanged" would leave the server with a content that it had
  // not at the cut, and does not know as changed since.
  remote_.at_cut(cut_->here);
  owners_.assign(cut_->here.size(), Holder::nobody);
  std::vector<PageNumber> computed;
  for (PageNumber page = 0; page < cut_->here.size(); ++page) {
    if (cut_->here.test(page)) continue;
    YADO_ASSIGN(owners_[page], owner_(page), "checkpoint");
    if (owners_[page] == Holder::computed && belongs_into_it(page)) computed.push_back(page);
  }
  remote_.hold_for_image(computed);
  return ask_all(Operation::fix);
}

/// Until the servers have fixed their part.
Status SplitSave::wait_until_fixed() {
  YADO_ASSIGN(Answers answers, fixed_.get(), "checkpoint");
  return all_done(answers);
}

/// Written as it comes: little of it is in memory, and less the sooner it is read.
Status SplitSave::put_computed() {
  const Pager::SaveSink to_log = sink();
  for (;;) {
    std::promise<Result<Piece>> read;
    asio::post(network_, [&] { remote_.read_held([&](Result<Piece> piece) { read.set_value(std::move(piece)); }); });
    YADO_ASSIGN(const Piece piece, read.get_future().get(), "checkpoint");
    if (piece.pages.empty()) return {};
    for (std::size_t i = 0; i < piece.pages.size(); ++i)
      YADO_TRY(to_log(piece.pages[i], is_zero(PageData(piece.contents[i], page_bytes)) ? nullptr : piece.contents[i]), "checkpoint");
  }
}

/// This host answers for what is here, for what nobody has as it is (computed, and written already, or zeros), and for what still lies in the
/// image on its disk.
Status SplitSave::put_rest_of_here(image::PageSet& owned) {
  std::vector<std::byte> content(page_bytes);
  for (PageNumber page = 0; page < owners_.size(); ++page) {
    const Holder holder = owners_[page];
    if (holder < Holder::computed) continue;
    if (!owned.empty() && owned.back().end() == page) ++owned.back().count;
    else owned.push_back({image::PageNumber{page}, 1});
    if (cut_->here.test(page) || holder == Holder::computed || !belongs_into_it(page)) continue;
    if (holder == Holder::nobody) {
      YADO_TRY(appender_->put_zeros(image::PageNumber{page}, image::Round{rounds_}), "checkpoint");
      continue;
    }
    YADO_TRY(options_.image->read(image::PageNumber{page}, image::PageBuffer(content.data(), page_bytes)), "checkpoint");
    YADO_TRY(appender_->put(image::PageNumber{page}, image::PageContents(content.data(), page_bytes), image::Round{rounds_}), "checkpoint");
    YADO_TRY(keep_to_rate(page_bytes), "checkpoint");
  }
  return {};
}

Result<std::vector<SplitSave::Share>> SplitSave::finish() {
  YADO_TRY(pager_.copy_rest(), "checkpoint");
  YADO_TRY(wait_until_fixed(), "checkpoint");
  // What the servers own, in frames of as many runs as one may have.
  std::vector<Answers> answers(servers_.size());
  for (const std::size_t server : taking_part_) {
    std::vector<KindRun> runs;
    const auto send = [&](bool more) {
      answers[server].push_back(ask(servers_[server], Operation::finish, make_finish({runs, name_on(servers_[server])}), more ? flag_more : 0));
      runs.clear();
    };
    for (PageNumber page = 0; page < owners_.size(); ++page) {
      if (owners_[page] != Holder(server)) continue;
      append(runs, page, PageKind::wanted);
      if (runs.size() == most_runs) send(true);
    }
    send(false);
  }
  ++rounds_;
  image::PageSet owned;
  Status mine = put_computed();
  if (mine) mine = pager_.finish_save([this, to_log = sink()](PageNumber page, const std::byte* content) -> Status {
    return cut_->here.test(page) ? to_log(page, content) : Status();  // else it was copied before it left
  });
  if (mine) mine = put_rest_of_here(owned);
  if (mine) mine = appender_->flush();
  shares_.clear();
  if (mine) {
    const auto index = writer_->finish(owned);
    if (index) shares_.push_back({"", index->records(), index->log_slots() * page_bytes, {}});
    else mine = std::unexpected(index.error());
  }
  Status theirs;
  for (const std::size_t server : taking_part_)
    for (auto& answer : answers[server]) {
      const auto one = answer.get();
      const auto saved = one ? parse_saved(*one) : std::unexpected(one.error());
      if (!saved) theirs = std::unexpected(saved.error());
      else if (&answer == &answers[server].back()) shares_.push_back({servers_[server].host, saved->pages, saved->bytes, {}});
    }
  YADO_TRY(mine, "checkpoint");
  YADO_TRY(theirs, "checkpoint");
  return shares_;
}

Result<std::vector<SplitSave::Share>> SplitSave::keep() {
  Answers answers = ask_all(Operation::keep);
  Status all;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const auto one = answers[i].get();
    const auto sum = one ? parse_name(*one) : std::unexpected(one.error());
    if (sum) shares_[i + 1].sum = *sum;
    else if (all) all = std::unexpected(sum.error());
  }
  YADO_TRY(all, "checkpoint");
  kept_ = true;
  pager_.end_save(true);
  return shares_;
}

}  // namespace yado::pager
