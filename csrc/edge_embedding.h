// What a force field knows of an edge, and its derivatives, in double precision. Formula: se3_fast/layers/edge_embedding.py.

#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace se3_fast {

// How a harmonic is made of those of the degree before: Y[out] += coefficient * Y[before] * direction[axis]. Harmonics are counted
// over all degrees; a degree's terms stand behind those of the degree before.
struct HarmonicTerm {
    int64_t before, axis, out;
    double coefficient;
};

class EdgeEmbedding {
public:
    EdgeEmbedding(const std::vector<HarmonicTerm>& terms, int64_t num_harmonics, double knots_per_length)
        : terms_(terms), harmonics_(num_harmonics), of_harmonics_(num_harmonics), knots_per_length_(knots_per_length) {}

    // Harmonics [.] of an edge, and its place among the knots.
    template <typename T>
    void embed(const T* rel_pos, T* harmonics, T* place) {
        look_at(rel_pos);
        for (std::size_t index = 0; index < harmonics_.size(); ++index) harmonics[index] = T(harmonics_[index]);
        *place = T((is_point_ ? 0 : length_) * knots_per_length_ - 1);
    }

    // The gradient by the relative position from those of harmonics and place.
    template <typename T>
    void differentiate(const T* rel_pos, const T* of_harmonics, T of_place, T* of_rel_pos) {
        look_at(rel_pos);
        for (std::size_t index = 0; index < harmonics_.size(); ++index) of_harmonics_[index] = double(of_harmonics[index]);
        double of_direction[3] = {0, 0, 0}, along = 0;
        for (auto term = terms_.rbegin(); term != terms_.rend(); ++term) {
            const double given = term->coefficient * of_harmonics_[term->out];
            of_harmonics_[term->before] += given * direction_[term->axis];
            of_direction[term->axis] += given * harmonics_[term->before];
        }
        for (int axis = 0; axis < 3; ++axis) of_direction[axis] += SQUARE_ROOT_OF_3 * of_harmonics_[1 + axis];
        const double of_length = knots_per_length_ * double(of_place);
        for (int axis = 0; axis < 3; ++axis) along += direction_[axis] * of_direction[axis];
        for (int axis = 0; axis < 3; ++axis) {
            const double turned = is_point_ ? of_direction[axis] : (of_direction[axis] - along * direction_[axis]) / length_;
            of_rel_pos[axis] = T(turned + of_length * direction_[axis]);
        }
    }

    // The derivatives of harmonics and place along a direction of the relative position.
    template <typename T>
    void embed_along(const T* rel_pos, const T* direction, T* harmonics, T* place) {
        look_at(rel_pos);
        double length_dot = 0, direction_dot[3];
        for (int axis = 0; axis < 3; ++axis) length_dot += direction_[axis] * double(direction[axis]);
        for (int axis = 0; axis < 3; ++axis) direction_dot[axis] = (double(direction[axis]) - length_dot * direction_[axis]) / length_;
        std::vector<double>& dots = of_harmonics_;
        for (std::size_t index = 0; index < dots.size(); ++index)
            dots[index] = index > 0 && index < 4 ? SQUARE_ROOT_OF_3 * direction_dot[index - 1] : 0;
        for (const HarmonicTerm& term : terms_)
            dots[term.out] += term.coefficient *
                              (dots[term.before] * direction_[term.axis] + harmonics_[term.before] * direction_dot[term.axis]);
        for (std::size_t index = 0; index < dots.size(); ++index) harmonics[index] = T(dots[index]);
        *place = T(knots_per_length_ * length_dot);
    }

private:
    static constexpr double SQUARE_ROOT_OF_3 = 1.7320508075688772935;

    const std::vector<HarmonicTerm>& terms_;
    std::vector<double> harmonics_, of_harmonics_;
    double knots_per_length_;
    double length_ = 0, direction_[3] = {};  // 1 and zero for an edge without length
    bool is_point_ = false;

    template <typename T>
    void look_at(const T* rel_pos) {
        double square = 0;
        for (int axis = 0; axis < 3; ++axis) square += double(rel_pos[axis]) * double(rel_pos[axis]);
        is_point_ = square == 0;
        length_ = is_point_ ? 1 : std::sqrt(square);
        for (int axis = 0; axis < 3; ++axis) direction_[axis] = double(rel_pos[axis]) / length_;
        harmonics_[0] = 1;
        for (std::size_t index = 1; index < harmonics_.size(); ++index)
            harmonics_[index] = index < 4 ? SQUARE_ROOT_OF_3 * direction_[index - 1] : 0;
        for (const HarmonicTerm& term : terms_)
            harmonics_[term.out] += term.coefficient * harmonics_[term.before] * direction_[term.axis];
    }
};

}  // namespace se3_fast
