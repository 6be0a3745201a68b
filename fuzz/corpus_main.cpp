// yado-fuzz-corpus DIRECTORY [MUTATIONS [SEED]]
//
// Runs every harness over DIRECTORY/corpus/<harness>/* and over MUTATIONS changed copies of each file: always the same
// ones, so that a failure is one for everybody. What ends the process is kept as fuzz-failure-<harness> in the
// working directory: a file to add to the corpus.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "fuzz/mutator.hpp"

#define YADO_HARNESS(name) extern "C" int yado_fuzz_##name(const std::uint8_t* data, std::size_t size);
#include "harnesses.inc"
#undef YADO_HARNESS

extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace yado::fuzz {
namespace {

namespace fs = std::filesystem;

struct Harness {
  std::string name;
  int (*run)(const std::uint8_t*, std::size_t);
};
const std::vector<Harness> harnesses{
#define YADO_HARNESS(name) {#name, yado_fuzz_##name},
#include "harnesses.inc"
#undef YADO_HARNESS
};

// What a signal handler needs, ready before anything goes wrong.
struct {
  char path[64];
  const char* data;
  std::size_t size;
} current;

void keep_current() {
  const int fd = ::open(current.path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return;
  const char message[] = "\nyado-fuzz-corpus: the input is kept as ";
  if (::write(fd, current.data, current.size) == static_cast<ssize_t>(current.size) &&
      ::write(STDERR_FILENO, message, sizeof message - 1) > 0 &&
      ::write(STDERR_FILENO, current.path, std::char_traits<char>::length(current.path)) > 0)
    (void)!::write(STDERR_FILENO, "\n", 1);
  ::close(fd);
}

void catch_deaths() {
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(keep_current);
  static std::array<char, 64 * 1024> stack;  // of its own: deep nesting may have used up the other
  const stack_t alternate{.ss_sp = stack.data(), .ss_flags = 0, .ss_size = stack.size()};
  ::sigaltstack(&alternate, nullptr);
  struct sigaction action {};
  action.sa_flags = static_cast<int>(SA_ONSTACK | SA_RESETHAND);
  action.sa_handler = [](int signal) {
    keep_current();
    ::raise(signal);
  };
  // SIGTERM: whoever ran it lost patience, and the input at hand is the one that takes for ever.
  for (int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTERM}) ::sigaction(signal, &action, nullptr);
}

Result<std::string> read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) return fail(Errc::io, "{} cannot be read", path.native());
  return text;
}

/// FNV-1a: a file's mutations do not depend on which other files there are.
std::uint64_t hash_of(std::string_view text, std::uint64_t seed) {
  std::uint64_t hash = 0xcbf29ce484222325 ^ seed;
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3;
  return hash;
}

void run_one(const Harness& harness, const std::string& input) {
  current.data = input.data();
  current.size = input.size();
  // A copy of exactly that size, so that a sanitizer sees a read beyond it.
  std::vector<std::uint8_t> bytes(input.begin(), input.end());
  bytes.shrink_to_fit();
  harness.run(bytes.data(), bytes.size());
}

Result<std::size_t> run_all(const Harness& harness, const fs::path& directory, std::size_t mutations,
                            std::uint64_t seed) {
  std::snprintf(current.path, sizeof current.path, "fuzz-failure-%s", harness.name.c_str());
  YADO_ASSIGN(const std::string dictionary_text, read(directory / "dictionaries" / (harness.name + ".dict")),
              "dictionary");
  YADO_ASSIGN(const std::vector<std::string> dictionary, parse_dictionary(dictionary_text), harness.name + ".dict");
  std::error_code error;
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(directory / "corpus" / harness.name, error))
    if (entry.is_regular_file()) paths.push_back(entry.path());
  if (error || paths.empty())
    return fail(Errc::not_found, "no corpus in {}/corpus/{}", directory.native(), harness.name);
  std::ranges::sort(paths);
  std::vector<std::string> corpus;
  for (const fs::path& path : paths) {
    YADO_ASSIGN(corpus.emplace_back(), read(path), "corpus");
  }
  run_one(harness, "");
  for (std::size_t i = 0; i < corpus.size(); ++i) {
    run_one(harness, corpus[i]);
    Mutator mutator(hash_of(harness.name + "/" + paths[i].filename().native(), seed), corpus, dictionary);
    for (std::size_t round = 0; round < mutations; ++round) run_one(harness, mutator.mutate(corpus[i]));
  }
  return 1 + corpus.size() * (1 + mutations);
}

}  // namespace
}  // namespace yado::fuzz

int main(int count, char** words) {
  using namespace yado::fuzz;
  if (count < 2 || count > 4) {
    std::fprintf(stderr, "usage: yado-fuzz-corpus DIRECTORY [MUTATIONS [SEED]]\n");
    return 2;
  }
  const std::size_t mutations = count > 2 ? std::strtoull(words[2], nullptr, 10) : 1000;
  const std::uint64_t seed = count > 3 ? std::strtoull(words[3], nullptr, 10) : 1;
  catch_deaths();
  for (const Harness& harness : harnesses) {
    const auto inputs = run_all(harness, words[1], mutations, seed);
    if (!inputs) {
      std::fprintf(stderr, "yado-fuzz-corpus: %s\n", inputs.error().text().c_str());
      return 1;
    }
    std::printf("%-14s %zu inputs\n", harness.name.c_str(), *inputs);
    std::fflush(stdout);
  }
  return 0;
}
