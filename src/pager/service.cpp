#include "pager/service.hpp"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <limits>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_future.hpp>
#include <future>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <random>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>

#include "base/log.hpp"
#include "image/working_set.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/pidfd.hpp"
#include "pager/heritage.hpp"
#include "pager/image_server.hpp"
#include "pager/parity.hpp"
#include "pager/server_set.hpp"
#include "pager/split_save.hpp"
#include "pager/write_back.hpp"
#include "wire/listen.hpp"

namespace yado::pager {
namespace asio = boost::asio;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int hook_descriptor = 3, ready_descriptor = 4;
constexpr const char* parity_suffix = ".parity";
constexpr std::uint64_t most_stripes_of_group = 512;
constexpr std::uint64_t most_pages_of_run = std::numeric_limits<std::uint32_t>::max();

json error_of(const Error& error) { return {{"error", {{"code", name_of(error.code)}, {"message", error.message}}}}; }

/// One remote memory with everything that hangs on it. Of the network's thread, except for what says otherwise.
class Network {
 public:
  Network(const ServiceConfig& config, std::uint64_t seed) : config_(config), seed_(seed), epoch_(config.epoch) {
    if (std::ranges::any_of(config.servers, [](const auto& one) { return one.instance != 0; })) holding_ = Holding::read;
  }
  ~Network() {
    busy_.reset();
    io_.stop();
    if (thread_.joinable()) thread_.join();
  }

  /// Connects to every server, has it load its share, and finds out who has what. On the caller's thread.
  Status open() {
    if (!config_.identity.empty()) {
      YADO_ASSIGN(identity_, wire::Identity::load(config_.identity), "pager");
    }
    thread_ = std::thread([this] { io_.run(); });
    std::vector<ServerSet::Member> members;
    YADO_TRY(connect_all(members), "memory");
    if (!config_.image.empty()) {
      YADO_ASSIGN(chain_, open_chain(), "image");
      image_ = std::make_unique<ImageServer>(io_.get_executor(), chain_, "the image on this host");
      image_number_ = members.size();
      members.emplace_back();
    }
    make_memory(members);
    servers_ = std::make_unique<ServerSet>(executor(), *memory_, std::move(members), [this](const ServiceConfig::Server& one) { return connect_new(one); });
    if (chain_) YADO_TRY(adopt(), "image");
    PageBits had(pages());
    for (std::size_t i = 0; i < servers_->members().size(); ++i)  // nobody changes them yet
      if (const auto& told = servers_->members()[i].told; told.instance != 0) YADO_TRY(list_of(i, had), fmt::format("memory on {}", told.host));
    if (owns()) take_in_loaded();
    return {};
  }

  RemoteMemory& memory() { return *memory_; }
  Copies* copies() { return copies_; }  ///< null with parity
  asio::any_io_executor executor() { return io_.get_executor(); }
  ServerSet& servers() { return *servers_; }
  const std::shared_ptr<const image::PageChain>& chain() const { return chain_; }
  std::uint64_t pages() const { return config_.memory_bytes / page_bytes; }
  std::uint64_t seed() const { return seed_; }

  /// For SplitSave.
  Result<SplitSave::Holder> holder(PageNumber page) const {
    const auto owner = memory_->owner(page);
    if (owner) return owner != image_number_ ? SplitSave::Holder(*owner) : SplitSave::Holder::image;
    if (memory_->is_zero(page)) return SplitSave::Holder::nobody;
    if (memory_->is_computed(page)) return SplitSave::Holder::computed;
    return fail(Errc::unavailable, "page {} is lost: no server has it any more", page);
  }

  /// Runs it on the network's thread and waits.
  template <class Body>
  auto run(Body body) {
    std::promise<decltype(body())> result;
    asio::post(io_, [&] { result.set_value(body()); });
    return result.get_future().get();
  }

  Status may_leave() {
    const bool all_live = run([&] { return parity_ == nullptr || parity_->all_hosts_live(); });
    if (all_live) return {};
    return fail(Errc::unavailable, "a memory host was lost, and what it had is only in the parity: it can move when another has taken its place");
  }

  /// For main host `to`. What its own server has is meant for its local memory. From now on own() decides who goes on.
  Result<std::vector<ServiceConfig::Server>> leave_to(const std::string& to) {
    const auto members = living();
    const auto stats = stats_of(executor(), links_of(members));
    std::vector<ServiceConfig::Server> servers;
    for (std::size_t i = 0; i < members.size(); ++i) {
      ServiceConfig::Server& server = servers.emplace_back(members[i].told);
      if (!stats[i]) return context(stats[i].error(), fmt::format("memory on {}", server.host));
      server.load.clear();
      server.leaving = server.host == to && !with_parity();
      describe(server, *members[i].link, epoch_, *stats[i]);
      if (members[i].parity) {
        server.parity_instance = members[i].parity->instance();
        server.parity_columns = columns();
      }
    }
    const std::lock_guard lock(own_mutex_);
    holding_ = Holding::left;
    return servers;
  }

  bool owns() const { return holding_ != Holding::read; }
  /// In front of the guest's next step: what is to be inherited is, and what was left is taken back. True: it was only read until now. From another thread.
  Result<bool> own(std::uint64_t epoch, const Pager& pager) {
    const std::lock_guard lock(own_mutex_);
    const Holding before = holding_;
    if (before == Holding::owned || (before == Holding::left && epoch == epoch_)) return false;
    const Status done = before == Holding::read ? inherit_all(epoch) : take_back(epoch, pager.here());
    if (!done) return std::unexpected(done.error());
    epoch_ = epoch;
    holding_ = Holding::owned;
    if (before == Holding::read) take_in_loaded();
    return before == Holding::read;
  }

 private:
  /// It writes: not what is another host's still.
  void take_in_loaded() {
    if (parity_) asio::post(io_, [this] { parity_->take_in_loaded(); });
  }

  void make_memory(const std::vector<ServerSet::Member>& members) {
    if (with_parity()) {
      std::vector<Parity::Host> hosts;
      for (const ServerSet::Member& one : members) hosts.push_back({one.link ? static_cast<PageServer*>(one.link.get()) : image_.get(), one.parity.get()});
      auto made = std::make_unique<Parity>(Parity::Options{.pages = pages(), .data = columns(), .seed = seed_}, std::move(hosts));
      parity_ = made.get();
      memory_ = std::move(made);
      return;
    }
    std::vector<PageServer*> servers;
    for (const ServerSet::Member& one : members) servers.push_back(one.link ? static_cast<PageServer*>(one.link.get()) : image_.get());
    auto made = std::make_unique<Copies>(Copies::Options{pages(), config_.copies, seed_}, std::move(servers));
    copies_ = made.get();
    memory_ = std::move(made);
  }

  bool with_parity() const { return config_.parity && !config_.servers.empty(); }
  unsigned columns() const {
    for (const ServiceConfig::Server& one : config_.servers)
      if (one.parity_columns != 0) return one.parity_columns;
    return Parity::columns_for(config_.servers.size());
  }

  std::vector<ServerSet::Member> living() {
    return run([&] {
      std::vector<ServerSet::Member> members;
      for (const ServerSet::Member& one : servers_->members())
        if (one.link && !one.gone && one.link->alive()) members.push_back(one);
      return members;
    });
  }
  /// In the order of the members, and behind them those for parity.
  static std::vector<std::shared_ptr<ServerLink>> links_of(const std::vector<ServerSet::Member>& members) {
    std::vector<std::shared_ptr<ServerLink>> links;
    for (const ServerSet::Member& one : members) links.push_back(one.link);
    for (const ServerSet::Member& one : members)
      if (one.parity) links.push_back(one.parity);
    return links;
  }

  /// Whoever inherits one session keeps the host before from going on: so all of them must be there to be had, and as they were left.
  Status inherit_all(std::uint64_t epoch) {
    const auto is_heritage = [](const ServiceConfig::Server& one) { return one.instance != 0; };
    auto members = living();
    std::erase_if(members, [&](const ServerSet::Member& one) { return !is_heritage(one.told); });
    if (std::ssize(members) != std::ranges::count_if(config_.servers, is_heritage)) return fail(Errc::unavailable, "inherit: a memory server was lost meanwhile");
    const auto all_as_left = [&](const std::vector<Result<SessionStats>>& stats) -> Status {
      for (std::size_t i = 0; i < stats.size(); ++i) {
        if (!stats[i]) return owned_by_another(stats[i].error());
        if (i >= members.size()) continue;  // parity: whatever was there is of no use any more
        if (const Status same = is_as_left(members[i].told, *stats[i]); !same) return same;
      }
      return {};
    };
    YADO_TRY(all_as_left(stats_of(executor(), links_of(members))), "look first");
    return all_as_left(inherit(executor(), links_of(members), epoch));
  }

  /// Who has died meanwhile, or has ended the session, is done without.
  Status take_back(std::uint64_t epoch, const PageBits& here) {
    for (const auto& stats : inherit(executor(), links_of(living()), epoch))
      if (!stats && stats.error().code == Errc::stale_epoch) return owned_by_another(stats.error());
    return run([&]() -> Status {
      for (PageNumber page = 0; page < pages(); ++page)
        if (!here.test(page) && memory_->lost(page)) return fail(Errc::unavailable, "page {} is lost: no server has it any more", page);
      return {};
    });
  }

  /// Not `stale_epoch`: nobody was granted a later one than this.
  static std::unexpected<Error> owned_by_another(const Error& error) {
    if (error.code != Errc::stale_epoch) return std::unexpected(error);
    return fail(Errc::not_owner, "another main host has this memory, and its guest may have run: {}", error.message);
  }

  /// One that cannot be had is done without, unless it has a share of the image or a heritage, or nobody else is left.
  Status connect_all(std::vector<ServerSet::Member>& members) {
    std::vector<std::future<Result<ServerSet::Member>>> opening;
    for (const ServiceConfig::Server& one : config_.servers)
      opening.push_back(std::async(std::launch::async, [this, &one] { return connect_member(one, one.instance != 0 ? Role::reader : Role::owner); }));
    std::optional<Error> missing;
    for (std::size_t i = 0; i < opening.size(); ++i) {
      const ServiceConfig::Server& server = config_.servers[i];
      auto member = opening[i].get();
      if (member) {
        members.push_back(std::move(*member));
        continue;
      }
      const Error why{member.error().code, fmt::format("memory on {}: {}", server.host, member.error().message)};
      if (!server.load.empty() || server.instance != 0) return std::unexpected(why);
      log::warn("pager: {}: done without", why.text());
      missing = why;
    }
    if (members.empty() && missing && config_.local_bytes < config_.memory_bytes) return std::unexpected(*missing);
    if (with_parity() && members.size() <= columns())
      return fail(missing ? missing->code : Errc::invalid_argument, "parity over {} hosts wants {} memory servers, {} are there{}", config_.servers.size(), columns() + 1,
                  members.size(), missing ? ": " + missing->message : std::string());
    return {};
  }

  Result<ServerSet::Member> connect_member(const ServiceConfig::Server& server, Role role) {
    ServerSet::Member member{.told = server};
    YADO_ASSIGN(member.link, connect(server, role), "pages");
    if (with_parity()) {
      YADO_ASSIGN(member.parity, connect_parity(server, server.parity_instance != 0 ? role : Role::owner), "parity");
    }
    return member;
  }

  /// A further one, while it is in use. Of what another host may go on with nothing is begun anew.
  Result<ServerSet::Member> connect_new(const ServiceConfig::Server& server) {
    if (!owns()) return fail(Errc::conflict, "this memory is not inherited yet");
    return connect_member(server, Role::owner);
  }

  /// A session of its own: no image contains it. A host keeps the parity of every so many groups, and of those that a lost one kept.
  /// One that is inherited is emptied then: which stripes the host before had there only that one knew.
  Result<std::shared_ptr<ServerLink>> connect_parity(const ServiceConfig::Server& server, Role role) {
    const std::uint64_t stripes = Parity::stripes(pages(), columns());
    ServiceConfig::Server told = server;
    told.instance = server.parity_instance;
    told.quota_bytes = std::min(stripes, stripes * 2 / config_.servers.size() + most_stripes_of_group) * page_bytes;
    YADO_ASSIGN(const auto link, connect(told, role, {config_.session + parity_suffix, stripes}), "connect");
    if (role == Role::reader) {
      std::vector<PageRun> all;
      for (std::uint64_t at = 0; at < stripes; at += most_pages_of_run) all.push_back({at, static_cast<std::uint32_t>(std::min(most_pages_of_run, stripes - at))});
      asio::post(io_, [link, all] { link->drop(all, [](const Status&) {}); });
    }
    return link;
  }

  struct Session {
    std::string name;
    std::uint64_t pages;
  };
  Result<std::shared_ptr<ServerLink>> connect(const ServiceConfig::Server& server, Role role) { return connect(server, role, {config_.session, pages()}); }
  Result<std::shared_ptr<ServerLink>> connect(const ServiceConfig::Server& server, Role role, const Session& session) {
    LinkOptions options;
    const std::uint64_t generation = role == Role::reader ? server.instance : std::uint64_t{life_now()} << 32;
    options.hello = {.epoch = epoch_, .generation = generation, .pages = session.pages, .quota_pages = server.quota_bytes / page_bytes, .role = role, .session = session.name, .from = server.epoch};
    if (server.instance != 0) options.instance = server.instance;
    if (!config_.identity.empty()) options.identity = &identity_;
    YADO_ASSIGN(auto link, ServerLink::make(io_.get_executor(), blocks_, {server.unix_path, server.address, server.port, server.expected_peer}, options), "connect");
    auto opened = asio::co_spawn(io_, ServerLink::open(link), asio::use_future).get();
    if (!opened) return std::unexpected(opened.error());
    return link;
  }

  Result<std::shared_ptr<const image::PageChain>> open_chain() const {
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
  Status adopt() {
    // All hosts at once, this one among them.
    const auto& members = servers_->members();  // nobody changes them yet
    std::vector<std::future<Result<Frame>>> loading(members.size());
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
  Status list_of(std::size_t server, PageBits& had) {
    for (PageNumber from = 0; from < pages();) {
      YADO_ASSIGN(const Frame frame, ask(server, Operation::list, make_number(from)).get(), "list");
      YADO_ASSIGN(const Batch batch, parse_batch(frame.body, BatchUse::listing), "list");
      if (batch.runs.empty()) break;
      for (const KindRun& one : batch.runs) had.set({one.first, one.pages});
      run([&] {
        memory_->adopt(batch.runs, server);
        return true;
      });
      from = batch.runs.back().first + batch.runs.back().pages;
    }
    return {};
  }

  /// Answered when all that is to be had from it is loaded: of a chain the pages whose newest record is in one of its logs. Nothing: not asked.
  std::future<Result<Frame>> ask_to_load(std::size_t server) {
    const ServiceConfig::Server& saved = servers_->members()[server].told;
    std::vector<KindRun> wanted;
    for (const image::PageRange& range : newest_in(saved.parts))
      for (std::uint64_t at = range.begin(); at < range.end(); at += most_pages_of_run)
        wanted.push_back({at, static_cast<std::uint32_t>(std::min(most_pages_of_run, range.end() - at)), PageKind::wanted});
    if (saved.load.empty() || (wanted.empty() && !saved.parts.empty())) return {};
    for (; wanted.size() > most_runs; wanted.erase(wanted.begin(), wanted.begin() + most_runs))
      (void)ask(server, Operation::load, make_load({{wanted.begin(), wanted.begin() + most_runs}, saved.load}), flag_more);
    return ask(server, Operation::load, make_load({std::move(wanted), saved.load}));
  }

  image::PageSet newest_in(const std::vector<fs::path>& parts) const {
    std::vector<image::PageRange> pages;
    for (const image::PagePart* part : chain_->parts())
      if (std::ranges::find(parts, fs::path(part->name())) != parts.end()) std::ranges::copy(chain_->newest_in(*part), std::back_inserter(pages));
    return image::normalised(std::move(pages));
  }

  std::future<Result<Frame>> ask(std::size_t server, Operation operation, std::vector<std::byte> body, std::uint16_t flags = 0) {
    auto answer = std::make_shared<std::promise<Result<Frame>>>();
    auto future = answer->get_future();
    asio::post(io_, [link = servers_->members()[server].link, operation, body = std::move(body), answer, flags]() mutable {
      link->request(operation, std::move(body), [answer](Result<Frame> frame) { answer->set_value(std::move(frame)); }, flags);
    });
    return future;
  }

  const ServiceConfig& config_;
  const std::uint64_t seed_;  ///< of the sums
  /// owned: nobody else may want it. read: it is another host's still. left: another host may go on with it.
  enum class Holding { owned, read, left };
  std::mutex own_mutex_;
  std::atomic<Holding> holding_ = Holding::owned;  // changed with own_mutex_
  std::atomic<std::uint64_t> epoch_;               // the same
  wire::Identity identity_;
  BlockPool blocks_{channel_block_bytes};  // outlives the context
  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> busy_ = asio::make_work_guard(io_);
  std::thread thread_;
  std::shared_ptr<const image::PageChain> chain_;
  std::unique_ptr<ImageServer> image_;
  std::optional<std::size_t> image_number_;  ///< in Copies
  std::unique_ptr<RemoteMemory> memory_;
  Copies* copies_ = nullptr;   ///< of these two the one that memory_ is
  Parity* parity_ = nullptr;
  std::unique_ptr<ServerSet> servers_;
};

/// A checkpoint's saving: as long as it is there, the servers stay the same.
class Saving {
 public:
  Saving(ServerSet& set, Pager& pager, Network& network, std::vector<SplitSave::Server> servers, SplitSave::Options options)
      : set_(set), watch_(options.watch), save_(std::in_place, pager, network.memory(), network.executor(), std::move(servers), [&network](PageNumber page) { return network.holder(page); }, std::move(options)) {}
  ~Saving() {
    save_.reset();
    watch_->end();
    set_.end_checkpoint();
  }
  Saving(const Saving&) = delete;
  Saving& operator=(const Saving&) = delete;
  SplitSave* operator->() { return &*save_; }

 private:
  ServerSet& set_;
  std::shared_ptr<SaveWatch> watch_;
  std::optional<SplitSave> save_;
};

/// The cut from which the pager counts changes.
struct KeptCut {
  std::mutex mutex;
  image::CutId cut;  // guarded by mutex: held from looking at it until the pager has begun, and while it changes
};

/// A move to another main host: the same.
class Leaving {
 public:
  Leaving(ServerSet& set, Pager& pager, Network& network, std::vector<SplitSave::Server> servers, WriteBack::Options options)
      : set_(set), back_(std::in_place, pager, network.memory(), network.executor(), std::move(servers), options) {}
  ~Leaving() {
    back_.reset();
    set_.end_checkpoint();
  }
  Leaving(const Leaving&) = delete;
  Leaving& operator=(const Leaving&) = delete;
  WriteBack* operator->() { return &*back_; }

 private:
  ServerSet& set_;
  std::optional<WriteBack> back_;
};

/// One client of the control socket.
class Client {
 public:
  Client(os::Fd socket, Pager& pager, Network& network, const ServiceConfig& config, KeptCut& kept, std::shared_ptr<SaveWatch> watch)
      : socket_(std::move(socket)), pager_(pager), network_(network), config_(config), kept_(kept), watch_(std::move(watch)) {}

  /// Until it hangs up.
  void serve() {
    std::string heard;
    char text[4096];
    for (;;) {
      const ssize_t n = ::read(socket_.get(), text, sizeof text);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return;
      heard.append(text, static_cast<std::size_t>(n));
      for (std::size_t end; (end = heard.find('\n')) != std::string::npos; heard.erase(0, end + 1)) {
        const auto done = answer(json::parse(heard.substr(0, end), nullptr, false));
        json said = done ? *done : error_of(done.error());
        if (done) said["ok"] = true;
        if (!os::write_all(socket_, said.dump() + "\n")) return;
      }
    }
  }

 private:
  Result<json> answer(const json& call) {
    if (!call.is_object()) return fail(Errc::invalid_argument, "a call is a JSON object on one line");
    const std::string what = call.value("do", "");
    if (what == "figures") return figures();
    if (what == "limit") {
      pager_.set_local_limit(call.value("bytes", std::uint64_t{0}) / page_bytes);
      return json::object();
    }
    if (what == "own") return own(call);
    if (!network_.owns()) return fail(Errc::conflict, "\"{}\": this memory is not inherited yet", what);
    if (what == "servers") return servers(call);
    if (what == "drained") {
      YADO_TRY(network_.servers().drained(), "memory");
      return json::object();
    }
    if (what == "save") return save(call);
    if (what == "leave") return leave(call);
    if (leaving_) return leaving(what, call);
    if (!save_) return fail(Errc::conflict, "\"{}\": no checkpoint is under way on this connection", what);
    if (what == "round") return round();
    if (what == "copy") return copy();
    Result<json> done = json::object();
    if (what == "fix") {
      if (const Status fixed = (*save_)->fix(); !fixed) done = std::unexpected(fixed.error());
    } else if (what == "finish") {
      done = finish();
    } else if (what == "keep") {
      const auto kept = keep();
      done = kept ? Result<json>(shares_json(*kept)) : std::unexpected(kept.error());
      save_.reset();
    } else {
      return fail(Errc::invalid_argument, "there is no call \"{}\"", what);
    }
    if (!done) save_.reset();
    return done;
  }

  Result<json> servers(const json& call) {
    const json local_bytes = call.value("local_bytes", json());
    if (!local_bytes.is_number_unsigned()) return fail(Errc::invalid_argument, "servers: how many \"local_bytes\"?");
    YADO_ASSIGN(const auto wanted, servers_from_text(call.value("servers", json()).dump()), "servers");
    const auto set_limit = [&] { pager_.set_local_limit(local_bytes.get<std::uint64_t>() / page_bytes); };
    YADO_ASSIGN(const auto notes, network_.servers().change(wanted, set_limit), "memory");
    return json{{"notes", notes}};
  }

  Result<json> own(const json& call) {
    const json epoch = call.value("epoch", json());
    if (!epoch.is_number_unsigned()) return fail(Errc::invalid_argument, "own: under which \"epoch\"?");
    YADO_ASSIGN(const bool begins, network_.own(epoch.get<std::uint64_t>(), pager_), "own");
    if (begins) network_.servers().start(pager_);
    return json::object();
  }

  Result<json> save(const json& call) {
    YADO_TRY(begin(call), "checkpoint");
    return round();
  }

  Status begin(const json& call) {
    if (save_ || leaving_) return fail(Errc::conflict, "a checkpoint or a move is under way");
    wait_for_redundancy();
    YADO_ASSIGN(auto servers, network_.servers().begin_checkpoint(), "checkpoint");
    limit_ = smaller_limit(config_.save_bytes_per_second, call.value("bytes_per_second", std::uint64_t{0}));
    const std::lock_guard lock(kept_.mutex);
    SplitSave::Options options{call.value("name", ""), call.value("part", ""), image::CutId::from_hex(call.value("cut", "")), image::CutId::from_hex(call.value("base_cut", "")), call.value("base", ""), limit_,
                               [this](SavePace::Time then) { return wait_until(then); }, network_.chain(), watch_};
    // Of any other base nobody knows what changed since.
    if (options.base_cut != kept_.cut) options.base_cut = {}, options.base.clear();
    part_ = options.part;
    cut_ = options.cut;
    base_cut_ = options.base_cut;
    save_.emplace(network_.servers(), pager_, network_, std::move(servers), std::move(options));
    watch_->begin();
    const Status begun = (*save_)->begin();
    if (!begun) save_.reset();
    return begun;
  }

  /// The client may end meanwhile.
  Status wait_until(SavePace::Time then) const {
    const auto left = std::max(then - std::chrono::steady_clock::now(), SavePace::Time::duration(0));
    YADO_ASSIGN(const bool hung_up, os::readable_within(socket_.get(), left, POLLRDHUP), "checkpoint");
    return hung_up ? fail(Errc::canceled, "whoever asked for the checkpoint has ended") : Status();
  }

  /// With parity a page that is being computed or taken in lies nowhere as it is: its server saves it better than this host, which had to compute it, too.
  void wait_for_redundancy() {
    if (network_.copies() != nullptr) return;
    std::promise<void> rebuilt;
    network_.run([&] { return network_.memory().when_rebuilt([&] { rebuilt.set_value(); }), true; });
    rebuilt.get_future().wait();
  }

  Result<json> leave(const json& call) {
    if (save_ || leaving_) return fail(Errc::conflict, "a checkpoint or a move is under way");
    wait_for_redundancy();
    YADO_TRY(network_.may_leave(), "move");
    YADO_ASSIGN(auto servers, network_.servers().begin_checkpoint(), "move");
    WriteBack::Options options{.landing = std::nullopt, .local_limit = pager_.local_limit(), .seed = network_.seed()};
    to_ = call.value("to", "");
    for (std::size_t i = 0; i < servers.size(); ++i)
      if (servers[i].link && servers[i].host == to_) options.landing = i;
    leaving_.emplace(network_.servers(), pager_, network_, std::move(servers), options);
    return leaving("begin", call);
  }

  /// The calls of a move; after an error it is over.
  Result<json> leaving(const std::string& what, const json& call) {
    Result<json> done = json::object();
    if (what == "begin" || what == "round") {
      const Status begun = what == "begin" ? (*leaving_)->begin() : Status();
      const auto round = begun ? (*leaving_)->round() : std::unexpected(begun.error());
      done = round ? Result<json>(json{{"pages", round->pages}, {"left", round->left}}) : std::unexpected(round.error());
    } else if (what == "left") {
      done = left(call.value("part", ""));
    } else {
      done = fail(Errc::conflict, "\"{}\": a move is under way", what);
    }
    if (!done) leaving_.reset();
    return done;
  }

  Result<json> left(const fs::path& part) {
    if (!part.is_absolute()) return fail(Errc::invalid_argument, "left: \"part\" is an absolute path");
    YADO_TRY(write_order_of_use(part, pager_.by_recency()), "move");
    YADO_TRY((*leaving_)->finish(), "move");
    YADO_ASSIGN(const auto servers, network_.leave_to(to_), "move");
    return json{{"servers", json::parse(to_text(servers))}};
  }

  Status write_order_of_use(const fs::path& part, const std::vector<PageNumber>& by_recency) const {
    image::WorkingSet used{.guest_pages = pager_.pages(), .pages = {}};
    for (const PageNumber page : by_recency) used.pages.push_back(image::PageNumber{page});
    return image::write_working_set(part, used);
  }

  Result<json> round() {
    const auto done = (*save_)->round();
    if (!done) {
      save_.reset();
      return std::unexpected(done.error());
    }
    return json{{"pages", done->pages}, {"here", done->here}, {"left", done->left}, {"memory_pages", pager_.pages()}};
  }

  Result<json> copy() {
    const auto left = (*save_)->copy();
    if (left) return json{{"left", *left}};
    save_.reset();
    return std::unexpected(left.error());
  }

  Result<json> finish() {
    const auto recency = pager_.by_recency();
    const auto shares = (*save_)->finish();
    if (!shares) return std::unexpected(shares.error());
    YADO_TRY(write_order_of_use(part_, recency), "checkpoint");
    return shares_json(*shares);
  }

  Result<std::vector<SplitSave::Share>> keep() {
    const std::lock_guard lock(kept_.mutex);
    auto shares = (*save_)->keep();
    if (shares) kept_.cut = cut_;
    return shares;
  }

  json shares_json(const std::vector<SplitSave::Share>& shares) const {
    json all = json::array();
    for (const SplitSave::Share& share : shares)
      all.push_back({{"host", share.host}, {"pages", share.pages}, {"bytes", share.bytes}, {"sum", share.sum}});
    return json{{"shares", std::move(all)}, {"base_cut", base_cut_.none() ? "" : base_cut_.hex()}, {"bytes_per_second", limit_}};
  }

  Result<json> figures() const {
    const PagerFigures now = pager_.figures();
    json servers = json::array();
    const bool saving = watch_->under_way();
    const auto [counts, redundancy] = network_.run([&] {
      const auto& members = network_.servers().members();
      for (std::size_t i = 0; i < members.size(); ++i) {
        const ServerSet::Member& one = members[i];
        if (!one.link || one.gone) continue;
        // Nobody waits for its answer: what it says is in the next figures.
        if (saving && one.link->alive())
          one.link->stat([watch = watch_, host = one.told.host](const Result<SessionStats>& stats) {
            if (stats) watch->said(host, *stats);
          });
        const auto& traffic = one.link->traffic();
        servers.push_back({{"host", one.told.host}, {"alive", one.link->alive()}, {"leaving", one.leaving}, {"bytes_sent", traffic.bytes_sent},
                           {"bytes_received", traffic.bytes_received}, {"pages", network_.memory().pages_at(i)}});
      }
      return std::pair(network_.memory().traffic(), network_.memory().pages_without_redundancy());
    });
    json figures{{"memory_bytes", config_.memory_bytes},
                  {"local_bytes", now.table.in_file * page_bytes},
                  {"hot_bytes", now.table.mapped * page_bytes},
                  {"faults", now.table.faults},
                  {"minor_faults", now.table.minor_faults},
                  {"paged_in", now.table.paged_in},
                  {"paged_out", now.table.paged_out},
                  {"waiting", now.table.waiting},
                  {"over_limit", now.table.over_limit},
                  {"remote_faults", now.remote_faults},
                  {"fault_p50_us", now.fault_p50 / std::chrono::microseconds(1)},
                  {"fault_p99_us", now.fault_p99 / std::chrono::microseconds(1)},
                  {"pages_sent", counts.pages_sent},
                  {"pages_clean", counts.pages_clean},
                  {"pages_zero", counts.pages_zero},
                  {"pages_rebuilt", counts.pages_rebuilt},
                  {"pages_without_redundancy", redundancy},
                  {"servers", std::move(servers)}};
    if (saving) figures["saving"] = saving_json();
    return figures;
  }

  json saving_json() const {
    json shares = json::array();
    for (const auto& [host, share] : watch_->shares(pager_.unsaved()))
      shares.push_back({{"host", host}, {"saved_bytes", share.saved * page_bytes}, {"left_bytes", share.left * page_bytes}});
    return shares;
  }

  os::Fd socket_;
  Pager& pager_;
  Network& network_;
  const ServiceConfig& config_;
  KeptCut& kept_;
  std::shared_ptr<SaveWatch> watch_;
  image::CutId cut_, base_cut_;  ///< of the checkpoint under way
  std::uint64_t limit_ = 0;      ///< its, of each host, in bytes per second; 0: none
  fs::path part_;
  std::optional<Saving> save_;
  std::optional<Leaving> leaving_;
  std::string to_;  ///< of it
};

/// The pages that were in use when the image was taken, then all others in their order, which is that of a first round in its file.
std::vector<PageNumber> prefetch_order(const ServiceConfig& config, const image::PageChain* chain) {
  std::vector<PageNumber> order;
  std::vector<fs::path> parts = chain != nullptr ? config.image.back() : std::vector<fs::path>();
  if (!config.working_set.empty()) parts.push_back(config.working_set);
  for (const fs::path& part : parts)
    if (const auto used = image::read_working_set(part))
      for (const image::PageNumber page : used->pages) order.push_back(image::value_of(page));
  if (chain == nullptr) return order;
  chain->visit([&](image::PageNumber page, const image::PagePart&, const image::PageRecord& record) {
    if (!record.zero()) order.push_back(image::value_of(page));
  });
  return order;
}

/// One line from whoever connects; nobody, if the process ends before.
Result<std::pair<os::Fd, json>> first_call(const wire::UnixListener& listener, const GuestMemory& memory) {
  pollfd wanted[] = {{memory.process_fd(), POLLRDHUP, 0}, {listener.socket.get(), POLLIN, 0}};
  while (wanted[1].revents == 0) {
    if (::poll(wanted, 2, -1) < 0 && errno != EINTR) return fail_errno("poll");
    if (wanted[0].revents != 0) return fail(Errc::unavailable, "the process has ended before it was told what to inherit");
  }
  os::Fd socket(::accept4(listener.socket.get(), nullptr, nullptr, SOCK_CLOEXEC));
  std::string heard;
  char text[4096];
  while (heard.find('\n') == std::string::npos) {
    const ssize_t n = ::read(socket.get(), text, sizeof text);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return std::pair(std::move(socket), json());
    heard.append(text, static_cast<std::size_t>(n));
  }
  return std::pair(std::move(socket), json::parse(heard, nullptr, false));
}

/// Whom to answer, once everything was inherited; `config` says what.
Result<os::Fd> wait_for_heritage(const wire::UnixListener& listener, const GuestMemory& memory, ServiceConfig& config) {
  for (;;) {
    YADO_ASSIGN(auto call, first_call(listener, memory), "pager");
    const json& said = call.second;
    auto told = said.is_object() && said.value("do", "") == "inherit" ? config_from_text(said.value("config", json()).dump())
                                                                      : fail(Errc::conflict, "this pager waits to be told what to inherit");
    if (told && told->memory_bytes != config.memory_bytes) told = fail(Errc::conflict, "this pager waits for another memory");
    if (told) {
      told->control = config.control;
      config = std::move(*told);
      return std::move(call.first);
    }
    (void)os::write_all(call.first, error_of(told.error()).dump() + "\n");
  }
}

Status serve(ServiceConfig config, os::Fd hook, os::Fd& ready) {
  std::random_device random;
  const std::uint64_t seed = std::uint64_t{random()} << 32 | random();
  // Whoever waits for a page of this memory must not wait for ever, nor get another: the process ends, and the hook sees to QEMU.
  const auto lost = [](const Error& why) {
    log::error("pager: {}: this memory is lost", why.text());
    ::_exit(1);
  };
  std::optional<wire::UnixListener> listener;
  std::optional<GuestMemory> memory;
  const auto listen = [&]() -> Status {
    YADO_ASSIGN(listener, wire::make_unix_listener(config.control.native(), 0600), "pager");
    YADO_TRY(os::write_all(ready, "ok"), "pager");
    ready.reset();
    YADO_ASSIGN(GuestMemory taken, GuestMemory::take(std::move(hook)), "pager");
    memory.emplace(std::move(taken));
    return {};
  };
  os::Fd heir;
  const bool waits = config.waits;
  if (waits) {
    YADO_TRY(listen(), "pager");
    YADO_TRY(memory->go(), "pager");
    auto told = wait_for_heritage(*listener, *memory, config);
    if (!told) {
      listener->file.remove();
      return std::unexpected(told.error());
    }
    heir = std::move(*told);
  }
  Network network(config, seed);
  const Status open = network.open();
  if (!open && heir.valid()) (void)os::write_all(heir, error_of(open.error()).dump() + "\n");
  YADO_TRY(open, "pager");
  if (!waits) YADO_TRY(listen(), "pager");
  if (memory->pages() != network.pages())
    return fail(Errc::conflict, "the process has a memory of {} pages, wanted were {}", memory->pages(), network.pages());
  Pager pager(*memory, network.memory(), network.executor(),
              {{.pages = memory->pages(), .local_limit = config.local_bytes / page_bytes, .prefetch_most = config.prefetch_pages}, seed, lost});
  if (!waits) YADO_TRY(memory->go(), "pager");
  if (network.owns()) network.servers().start(pager);
  if (auto order = prefetch_order(config, network.chain().get()); !order.empty()) pager.prefetch(std::move(order));
  if (heir.valid()) (void)os::write_all(heir, json{{"ok", true}}.dump() + "\n");

  KeptCut kept;
  const auto watch = std::make_shared<SaveWatch>();
  std::vector<std::jthread> clients;
  for (;;) {
    pollfd wanted[] = {{memory->process_fd(), POLLRDHUP, 0}, {listener->socket.get(), POLLIN, 0}};
    if (::poll(wanted, 2, -1) < 0 && errno != EINTR) return fail_errno("poll");
    if (wanted[0].revents != 0) break;
    if (wanted[1].revents == 0) continue;
    os::Fd socket(::accept4(listener->socket.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket.valid()) continue;
    clients.emplace_back([&, socket = std::move(socket)]() mutable { Client(std::move(socket), pager, network, config, kept, watch).serve(); });
  }
  listener->file.remove();
  network.servers().end_sessions();
  // Clients may wait for what will not come: nothing of this process is needed any more.
  ::_exit(0);
}

}  // namespace

int run_service(const fs::path& path) {
  ::signal(SIGPIPE, SIG_IGN);
  os::Fd hook(hook_descriptor), ready(ready_descriptor);
  for (const os::Fd* fd : {&hook, &ready}) ::fcntl(fd->get(), F_SETFD, FD_CLOEXEC);
  const auto text = os::read_text(path);
  const auto config = text ? config_from_text(*text) : Result<ServiceConfig>(std::unexpected(text.error()));
  Status ended = config ? serve(*config, std::move(hook), ready) : Status(std::unexpected(config.error()));
  if (ended) return 0;
  log::error("pager: {}", ended.error().text());
  if (ready.valid()) (void)os::write_all(ready, fmt::format("{}:{}", static_cast<int>(ended.error().code), ended.error().message));
  return 1;
}

}  // namespace yado::pager
