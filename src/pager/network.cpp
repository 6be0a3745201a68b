#include "pager/network.hpp"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_future.hpp>
#include <limits>

#include "base/log.hpp"
#include "pager/answer_times.hpp"
#include "pager/heritage.hpp"

namespace yado::pager {
namespace asio = boost::asio;
namespace {

constexpr const char* parity_suffix = ".parity";
constexpr std::uint64_t most_stripes_of_group = 512;
constexpr std::uint64_t most_pages_of_run = std::numeric_limits<std::uint32_t>::max();

}  // namespace

Network::Network(const ServiceConfig& config) : config_(config), epoch_(config.epoch) {
  if (std::ranges::any_of(config.servers, [](const auto& one) { return one.instance != 0; })) holding_ = Holding::read;
}
Network::~Network() {
  busy_.reset();
  io_.stop();
  if (thread_.joinable()) thread_.join();
}

Status Network::open(std::uint64_t seed) {
  seed_ = seed;
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

/// It writes: not what is another host's still.
void Network::take_in_loaded() {
  asio::post(io_, [this] {
    if (parity_) parity_->take_in_loaded();
    else copies_->make_redundant();
  });
}

void Network::start(Pager& pager) {
  servers_->start(pager, missing_);
  servers_->on_death([this, &pager] {
    if (holding_ == Holding::owned) pager.end_if_lost();  // what was left has another owner, to whom its servers listen now: take_back() looks
  });
}

unsigned Network::columns() const {
  for (const ServiceConfig::Server& one : config_.servers)
    if (one.parity_columns != 0) return one.parity_columns;
  return Parity::columns_for(config_.servers.size());
}

void Network::make_memory(const std::vector<ServerSet::Member>& members) {
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

void Network::wait_for_redundancy() {
  if (parity_ == nullptr) return;
  std::promise<void> rebuilt;
  asio::post(io_, [&] { memory_->when_rebuilt([&] { rebuilt.set_value(); }); });
  rebuilt.get_future().wait();
}

Result<SplitSave::Holder> Network::holder(PageNumber page) const {
  const auto owner = memory_->owner(page);
  if (owner) return owner != image_number_ ? SplitSave::Holder(*owner) : SplitSave::Holder::image;
  if (memory_->is_zero(page)) return SplitSave::Holder::nobody;
  if (memory_->is_computed(page)) return SplitSave::Holder::computed;
  return fail(Errc::unavailable, "page {} is lost: no server has it any more", page);
}

/// One that cannot be had is done without, unless it has a share of the image or a heritage, it knows of a later owner, or nobody else is left. Whoever begins with nothing
/// is not waited for any longer than a silence needs to mean something: it is taken up when it answers. But a parity has as many hosts as it begins with.
Status Network::connect_all(std::vector<ServerSet::Member>& members) {
  std::optional<Error> missing;
  const auto open = [&](const std::vector<ServiceConfig::Server>& servers, bool patiently) -> Status {
    std::vector<std::future<Result<ServerSet::Member>>> opening;
    for (const ServiceConfig::Server& one : servers) {
      const bool wait = patiently || with_parity() || !one.load.empty() || one.instance != 0;
      opening.push_back(std::async(std::launch::async, [this, &one, within = wait ? std::nullopt : std::optional(AnswerTimes().suspicious())] {
        return connect_member(one, one.instance != 0 ? Role::reader : Role::owner, within);
      }));
    }
    missing_.clear();
    for (std::size_t i = 0; i < opening.size(); ++i) {
      const ServiceConfig::Server& server = servers[i];
      auto member = opening[i].get();
      if (member) {
        members.push_back(std::move(*member));
        continue;
      }
      const Error why{member.error().code, fmt::format("memory on {}: {}", server.host, member.error().message)};
      if (!server.load.empty() || server.instance != 0 || why.code == Errc::stale_epoch) return std::unexpected(why);
      log::warn("pager: {}: done without", why.text());
      missing = why;
      missing_.push_back(server);
    }
    return {};
  };
  const bool needs_one = config_.local_bytes < config_.memory_bytes;
  if (const Status opened = open(config_.servers, config_.servers.size() == 1 && needs_one); !opened) return opened;
  if (members.empty() && missing_.size() > 1 && needs_one)
    if (const Status opened = open(std::vector(missing_), true); !opened) return opened;
  if (members.empty() && missing && needs_one) return std::unexpected(*missing);
  if (with_parity() && members.size() <= columns())
    return fail(missing ? missing->code : Errc::invalid_argument, "parity over {} hosts wants {} memory servers, {} are there{}", config_.servers.size(), columns() + 1,
                members.size(), missing ? ": " + missing->message : std::string());
  return {};
}

Result<ServerSet::Member> Network::connect_member(const ServiceConfig::Server& server, Role role, std::optional<nanoseconds> within) {
  ServerSet::Member member{.told = server};
  YADO_ASSIGN(member.link, connect(server, role, {config_.session, pages()}, within), "pages");
  if (with_parity()) {
    YADO_ASSIGN(member.parity, connect_parity(server, server.parity_instance != 0 ? role : Role::owner), "parity");
  }
  return member;
}

/// A further one, while it is in use. Of what another host may go on with nothing is begun anew.
Result<ServerSet::Member> Network::connect_new(const ServiceConfig::Server& server) {
  if (!owns()) return fail(Errc::conflict, "this memory is not inherited yet");
  return connect_member(server, Role::owner);
}

/// A session of its own: no image contains it. A host keeps the parity of every so many groups, and of those that a lost one kept.
/// One that is inherited is emptied then: which stripes the host before had there only that one knew.
Result<std::shared_ptr<ServerLink>> Network::connect_parity(const ServiceConfig::Server& server, Role role) {
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

Result<std::shared_ptr<ServerLink>> Network::connect(const ServiceConfig::Server& server, Role role, const Session& session, std::optional<nanoseconds> within) {
  LinkOptions options{.open_within = within};
  const std::uint64_t generation = role == Role::reader ? server.instance : std::uint64_t{life_now()} << 32;
  options.hello = {.epoch = epoch_, .generation = generation, .pages = session.pages, .quota_pages = server.quota_bytes / page_bytes, .role = role, .session = session.name, .from = server.epoch};
  if (server.instance != 0) options.instance = server.instance;
  if (!config_.identity.empty()) options.identity = &identity_;
  YADO_ASSIGN(auto link, ServerLink::make(io_.get_executor(), blocks_, {server.unix_path, server.address, server.port, server.expected_peer}, options), "connect");
  auto opened = asio::co_spawn(io_, ServerLink::open(link), asio::use_future).get();
  if (!opened) return std::unexpected(opened.error());
  return link;
}

}  // namespace yado::pager
