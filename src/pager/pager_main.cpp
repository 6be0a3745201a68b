// The pager as a program of its own, for unit tests that have no `yado`.
#include "pager/service.hpp"

int main(int count, char** arguments) { return count == 2 ? yado::pager::run_service(arguments[1]) : 2; }
