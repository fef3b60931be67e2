// What a process has one of, and its threads take turns at.

#pragma once

#include <pthread.h>

#include <mutex>

namespace se3_fast {

// The process's object of a class with a public `mutex`. Never destroyed: threads may still use it while the process ends. A fork waits
// until no thread holds the mutex, so that the new process, which has none of the other threads, finds it free and the object whole.
// Who holds the mutex of one such object may not take that of another.
template <typename Shared>
Shared& process_wide() {
    static Shared& result = []() -> Shared& {
        Shared& made = *new Shared;
        pthread_atfork([] { process_wide<Shared>().mutex.lock(); }, [] { process_wide<Shared>().mutex.unlock(); },
                       [] { process_wide<Shared>().mutex.unlock(); });
        return made;
    }();
    return result;
}

}  // namespace se3_fast
