#include "spec/spec.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

// toml++ 3.3 aborts by its own assertion at "[=", although the line below it would report a proper error. A file must
// not be able to end the process: that assertion is passed over, any other becomes an exception.
namespace yado::spec {
constexpr void toml_assertion(bool holds, std::string_view condition) {
  if (!holds && condition != "is_bare_key_character(*cp) || is_string_delimiter(*cp)")
    throw std::logic_error("the TOML library cannot read this file");
}
}  // namespace yado::spec
#define TOML_ASSERT(condition) ::yado::spec::toml_assertion(static_cast<bool>(condition), #condition)
#include <toml++/toml.h>

#include "model/names.hpp"
#include "spec/check.hpp"

namespace yado::spec {
namespace {

// Every key there is, by table; what is not here is a mistake.
struct Keys {
  std::string_view table;
  std::string_view title;
  std::vector<std::string_view> names;
};
const std::vector<Keys>& all_keys() {
  static const std::vector<Keys> keys{
      {"", "the top of the file, above every [table]", {"name", "kind", "container", "service", "policy"}},
      {"container", "[container]", {"root", "command", "env", "cwd", "uid", "gid", "memory", "cpus", "pids", "mounts"}},
      {"container.mounts", "[[container.mounts]]", {"source", "target", "read_only"}},
      {"service", "[service]", {"hosts", "port", "ready", "idempotency_header"}},
      {"service.ready", "[service.ready]", {"path", "status", "contains", "start_limit"}},
      {"policy",
       "[policy]",
       {"standby", "consistency", "lease", "relocations", "lifetime", "image_age", "frozen_age", "placement"}},
  };
  return keys;
}

constexpr std::size_t longest_file = 1 << 20;
constexpr std::size_t most_dots = 16;
constexpr std::size_t most_lines = 50;  // of errors: nobody reads more

// toml++ limits nested values but not dotted keys, whose tables it destroys recursively: 500 000 of "a." end the
// process. Looks at dots outside strings since the last character that cannot be part of a key.
std::size_t deepest_key(std::string_view text) {
  std::size_t deepest = 0, depth = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '.') {
      deepest = std::max(deepest, ++depth);
    } else if (c == '#') {
      i = std::min(text.find('\n', i), text.size());
      depth = 0;
    } else if (c == '"' || c == '\'') {
      const std::string_view three = c == '"' ? "\"\"\"" : "'''";
      const bool multi = text.substr(i).starts_with(three);
      const std::string_view closing = multi ? three : three.substr(0, 1);
      for (i += closing.size(); i < text.size() && !text.substr(i).starts_with(closing); ++i)
        if (c == '"' && text[i] == '\\') ++i;
      i += closing.size() - 1;
    } else if (std::string_view("=,[]{}\n").find(c) != std::string_view::npos) {
      depth = 0;
    }
  }
  return deepest;
}

class Errors {
 public:
  explicit Errors(std::string_view file) : file_(file) {}

  void add(toml::source_position where, std::string_view field, std::string_view message) {
    // Positions that toml++ does not know (tables that only a dotted key implies) are 0:0.
    const auto line = std::max<toml::source_index>(where.line, 1),
               column = std::max<toml::source_index>(where.column, 1);
    lines_.push_back({line, column,
                      fmt::format("{}:{}:{}: {}{}{}", file_, line, column, field, field.empty() ? "" : ": ", message)});
  }

  /// Everything in the order of the file.
  Error joined() {
    std::ranges::stable_sort(lines_, {}, [](const Line& l) { return std::pair(l.line, l.column); });
    std::string text;
    for (std::size_t i = 0; i < std::min(lines_.size(), most_lines); ++i) text += (i == 0 ? "" : "\n") + lines_[i].text;
    if (lines_.size() > most_lines) text += fmt::format("\n{}: and {} more", file_, lines_.size() - most_lines);
    return {Errc::invalid_argument, std::move(text)};
  }

  bool empty() const { return lines_.empty(); }

 private:
  struct Line {
    toml::source_index line, column;
    std::string text;
  };
  std::string_view file_;
  std::vector<Line> lines_;
};

std::string_view kind_of(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "an array";
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "a whole number";
    case toml::node_type::floating_point:
      return "a number";
    case toml::node_type::boolean:
      return "true or false";
    default:
      return "a date or time";
  }
}

/// Reads one file: types here, meanings in check.cpp. Remembers where every field stands, and which ones are already
/// known to be wrong, so that no mistake is reported twice.
class Reader {
 public:
  Reader(Errors& errors, const Environment& environment) : errors_(errors), environment_(environment) {}

  WorkloadSpec read(const toml::table& root) {
    WorkloadSpec spec;
    where_[""] = root.source().begin;
    refuse_unknown(root, "", "");
    std::string name;
    required(root, "", "name", [&](auto& node, auto& field) { text(node, field, name); });
    spec.name = WorkloadId(name);
    optional(root, "", "kind", [&](auto& node, auto& field) { word(node, field, spec.kind, {Kind::container}); });
    required(root, "", "container", [&](auto& node, auto& field) { container(node, field, spec.container); });
    required(root, "", "service", [&](auto& node, auto& field) { service(node, field, spec.service); });
    // Images and frozen copies of an exclusive workload are refused (check.cpp), so cold is what its default can be.
    bool standby_given = false;
    optional(root, "", "policy", [&](auto& node, auto& field) { policy(node, field, spec.policy, standby_given); });
    if (!standby_given && spec.policy.consistency == Consistency::exclusive) spec.policy.standby = StandbyLevel::cold;

    for (const Problem& problem : problems_of(spec))
      if (!known_wrong(problem.field)) errors_.add(position_of(problem.field), problem.field, problem.message);
    return spec;
  }

 private:
  void wrong(const toml::node& node, const std::string& field, std::string_view message) {
    errors_.add(node.source().begin, field, message);
    wrong_.insert(field);
  }

  void wrong_type(const toml::node& node, const std::string& field, std::string_view what) {
    wrong(node, field, fmt::format("expected {}, found {}", what, kind_of(node)));
  }

  // A field is known to be wrong when it, something that holds it, or something in it has been reported.
  bool known_wrong(const std::string& field) const {
    for (std::string outer = field; !outer.empty(); shorten(outer))
      if (wrong_.contains(outer)) return true;
    for (char inner : {'.', '['}) {
      const std::string prefix = field + inner;
      if (const auto next = wrong_.lower_bound(prefix); next != wrong_.end() && next->starts_with(prefix)) return true;
    }
    return false;
  }

  // Of the field, or of the innermost thing around it that stands in the file.
  toml::source_position position_of(std::string field) const {
    while (!where_.contains(field)) shorten(field);
    return where_.at(field);
  }

  static void shorten(std::string& field) {
    const auto last = field.find_last_of(".[");
    field.resize(last == std::string::npos ? 0 : last);
  }

  static std::string join(const std::string& table, std::string_view key) {
    return table.empty() ? std::string(key) : fmt::format("{}.{}", table, key);
  }

  // Runs `read(node, field)` when the key is there.
  template <class Read>
  bool optional(const toml::table& table, const std::string& path, std::string_view key, Read read) {
    const toml::node* node = table.get(key);
    if (!node) return false;
    const std::string field = join(path, key);
    where_[field] = node->source().begin;
    read(*node, field);
    return true;
  }
  template <class Read>
  void required(const toml::table& table, const std::string& path, std::string_view key, Read read) {
    if (!optional(table, path, key, read)) wrong(table, join(path, key), "is missing");
  }

  void refuse_unknown(const toml::table& table, const std::string& path, std::string_view shape) {
    const auto& known = std::ranges::find(all_keys(), shape, &Keys::table)->names;
    for (auto&& [key, node] : table) {
      if (std::ranges::find(known, key.str()) != known.end()) continue;
      std::string hint;
      for (const Keys& other : all_keys())
        if (std::ranges::find(other.names, key.str()) != other.names.end())
          hint = fmt::format(", it belongs to {}", other.title);
      if (const auto meant = nearest(key.str(), known); hint.empty() && !meant.empty())
        hint = fmt::format(", did you mean {}?", quote(meant));
      if (hint.empty()) hint = fmt::format("; allowed are {}", fmt::join(known, ", "));
      errors_.add(key.source().begin, path, fmt::format("unknown key {}{}", quote(key.str()), hint));
    }
  }

  const toml::table* as_table(const toml::node& node, const std::string& field, std::string_view shape) {
    const toml::table* table = node.as_table();
    if (!table)
      wrong_type(node, field, "a table");
    else
      refuse_unknown(*table, field, shape);
    return table;
  }

  void text(const toml::node& node, const std::string& field, std::string& value) {
    const auto* string = node.as_string();
    if (!string) return wrong_type(node, field, "a string");
    auto expanded = expand(string->get(), environment_);
    if (!expanded) return wrong(node, field, expanded.error().message);
    value = std::move(*expanded);
  }

  template <class Integer>
  void integer(const toml::node& node, const std::string& field, Integer& value, std::int64_t least,
               std::int64_t most) {
    const auto* number = node.as_integer();
    if (!number) return wrong_type(node, field, "a whole number");
    if (number->get() < least || number->get() > most)
      return wrong(node, field, fmt::format("{} is not between {} and {}", number->get(), least, most));
    value = static_cast<Integer>(number->get());
  }

  template <class Enum>
  void word(const toml::node& node, const std::string& field, Enum& value, std::initializer_list<Enum> all) {
    std::string given;
    text(node, field, given);
    if (known_wrong(field)) return;
    if (auto known = from_name<Enum>(given)) {
      value = *known;
      return;
    }
    std::vector<std::string_view> allowed;
    for (Enum one : all) allowed.push_back(name_of(one));
    wrong(node, field,
          fmt::format("{} is not {}{}", quote(given), all.size() > 1 ? "one of " : "", fmt::join(allowed, ", ")));
  }

  // A string in one of the little languages of values.hpp.
  template <class Parse, class Take>
  void parsed(const toml::node& node, const std::string& field, Parse parse, Take take) {
    std::string given;
    text(node, field, given);
    if (known_wrong(field)) return;
    auto value = parse(given);
    if (!value) return wrong(node, field, value.error().message);
    take(*value);
  }
  template <class Duration>
  auto duration(Duration& value) {
    return [this, &value](auto& node, auto& field) {
      parsed(node, field, parse_duration, [&](milliseconds read) { value = read; });
    };
  }

  template <class Read>
  void list(const toml::node& node, const std::string& field, std::string_view of_what, Read read) {
    const toml::array* array = node.as_array();
    if (!array) return wrong_type(node, field, of_what);
    for (std::size_t i = 0; i < array->size(); ++i) {
      const std::string element = fmt::format("{}[{}]", field, i);
      where_[element] = (*array)[i].source().begin;
      read((*array)[i], element);
    }
  }
  void texts(const toml::node& node, const std::string& field, std::vector<std::string>& values) {
    list(node, field, "an array of strings",
         [&](const toml::node& element, const std::string& place) { text(element, place, values.emplace_back()); });
  }

  void container(const toml::node& node, const std::string& path, ContainerSpec& value) {
    const toml::table* table = as_table(node, path, "container");
    if (!table) return;
    required(*table, path, "root", [&](auto& n, auto& f) { text(n, f, value.root); });
    required(*table, path, "command", [&](auto& n, auto& f) { texts(n, f, value.command); });
    optional(*table, path, "env", [&](auto& n, auto& f) { environment(n, f, value.environment); });
    optional(*table, path, "cwd", [&](auto& n, auto& f) { text(n, f, value.working_directory); });
    optional(*table, path, "uid", [&](auto& n, auto& f) { integer(n, f, value.uid, 0, 65534); });
    optional(*table, path, "gid", [&](auto& n, auto& f) { integer(n, f, value.gid, 0, 65534); });
    optional(*table, path, "memory", [&](auto& n, auto& f) {
      parsed(n, f, parse_size, [&](std::uint64_t bytes) {
        value.memory_bytes = bytes;
        if (bytes == 0) wrong(n, f, "no program runs in no memory; leave the key out for no limit");
      });
    });
    optional(*table, path, "cpus", [&](auto& n, auto& f) { cpus(n, f, value.cpus); });
    optional(*table, path, "pids", [&](auto& n, auto& f) { integer(n, f, value.pids, 1, 4'194'304); });
    optional(*table, path, "mounts", [&](auto& n, auto& f) {
      list(n, f, "an array of tables", [&](auto& e, auto& place) { mount(e, place, value.mounts.emplace_back()); });
    });
  }

  void cpus(const toml::node& node, const std::string& field, double& value) {
    const auto number = node.value<double>();
    if (!number || !node.is_number()) return wrong_type(node, field, "a number");
    value = *number;
    if (value == 0) wrong(node, field, "0 is not between 0.01 and 4096; leave the key out for no limit");
  }

  void environment(const toml::node& node, const std::string& path, std::map<std::string, std::string>& value) {
    const toml::table* table = node.as_table();
    if (!table) return wrong_type(node, path, "a table of strings");
    for (auto&& [key, element] : *table) {
      const std::string field = join(path, plain(key.str()) ? std::string(key.str()) : quote(key.str()));
      text(element, field, value[std::string(key.str())]);
    }
  }

  void mount(const toml::node& node, const std::string& path, Mount& value) {
    const toml::table* table = as_table(node, path, "container.mounts");
    if (!table) return;
    required(*table, path, "source", [&](auto& n, auto& f) { text(n, f, value.source); });
    required(*table, path, "target", [&](auto& n, auto& f) { text(n, f, value.target); });
    optional(*table, path, "read_only", [&](auto& n, auto& f) {
      if (const auto* flag = n.as_boolean())
        value.read_only = flag->get();
      else
        wrong_type(n, f, "true or false");
    });
  }

  void service(const toml::node& node, const std::string& path, Service& value) {
    const toml::table* table = as_table(node, path, "service");
    if (!table) return;
    required(*table, path, "hosts", [&](auto& n, auto& f) { texts(n, f, value.hosts); });
    for (std::string& host : value.hosts) lower(host);
    required(*table, path, "port", [&](auto& n, auto& f) { integer(n, f, value.port, 1, 65535); });
    optional(*table, path, "ready", [&](auto& n, auto& f) { readiness(n, f, value.ready); });
    optional(*table, path, "idempotency_header", [&](auto& n, auto& f) { text(n, f, value.idempotency_header); });
    lower(value.idempotency_header);
  }

  void readiness(const toml::node& node, const std::string& path, Readiness& value) {
    const toml::table* table = as_table(node, path, "service.ready");
    if (!table) return;
    optional(*table, path, "path", [&](auto& n, auto& f) { text(n, f, value.path); });
    optional(*table, path, "status", [&](auto& n, auto& f) { integer(n, f, value.status, 200, 599); });
    optional(*table, path, "contains", [&](auto& n, auto& f) { text(n, f, value.contains); });
    optional(*table, path, "start_limit", duration(value.start_limit));
  }

  void policy(const toml::node& node, const std::string& path, Policy& value, bool& standby_given) {
    const toml::table* table = as_table(node, path, "policy");
    if (!table) return;
    standby_given = optional(*table, path, "standby", [&](auto& n, auto& f) {
      word(n, f, value.standby, {StandbyLevel::cold, StandbyLevel::image, StandbyLevel::frozen});
    });
    optional(*table, path, "consistency", [&](auto& n, auto& f) {
      word(n, f, value.consistency, {Consistency::shared, Consistency::exclusive});
    });
    optional(*table, path, "lease", duration(value.lease));
    optional(*table, path, "relocations", [&](auto& n, auto& f) {
      parsed(n, f, parse_rate, [&](const Rate& rate) {
        value.relocations = rate.count;
        value.relocations_per = rate.per;
      });
    });
    optional(*table, path, "lifetime", duration(value.lifetime));
    optional(*table, path, "image_age", duration(value.image_age));
    optional(*table, path, "frozen_age", duration(value.frozen_age));
    std::vector<std::string> hosts;
    optional(*table, path, "placement", [&](auto& n, auto& f) { texts(n, f, hosts); });
    for (std::string& host : hosts) value.placement.emplace_back(std::move(host));
  }

  static bool plain(std::string_view key) {
    return !key.empty() && std::ranges::all_of(key, [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
    });
  }

  // Host and header names mean the same in any case; the gate compares lower case.
  static void lower(std::string& name) {
    for (char& c : name)
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }

  Errors& errors_;
  const Environment& environment_;
  std::map<std::string, toml::source_position> where_;
  std::set<std::string> wrong_;
};

}  // namespace

Result<WorkloadSpec> parse(std::string_view text, std::string_view file_name, const Environment& environment) {
  Errors errors(file_name);
  if (text.size() > longest_file) {
    errors.add({}, "", fmt::format("{} bytes are too long for a spec (at most {})", text.size(), longest_file));
    return std::unexpected(errors.joined());
  }
  if (deepest_key(text) > most_dots) {
    errors.add({}, "", fmt::format("a key has more than {} dots", most_dots));
    return std::unexpected(errors.joined());
  }
  try {
    const toml::table root = toml::parse(text, file_name);
    WorkloadSpec spec = Reader(errors, environment).read(root);
    if (!errors.empty()) return std::unexpected(errors.joined());
    return spec;
  } catch (const toml::parse_error& error) {
    errors.add(error.source().begin, "", printable(error.description()));  // it quotes the file's characters
  } catch (const std::exception& error) {
    errors.add({}, "", error.what());
  }
  return std::unexpected(errors.joined());
}

}  // namespace yado::spec
